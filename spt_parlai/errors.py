"""The one exception a user should ever see from this package."""

from __future__ import annotations

import contextlib


class UsageError(SystemExit, ValueError):
    """A mistake the user can mend: one sentence naming the option or file, the value and the way out.

    As a `SystemExit` it ends a command with that sentence on stderr and exit status 1, without a traceback;
    as a `ValueError` it can be caught like any other by code that calls the package.
    """


@contextlib.contextmanager
def naming(option: str, value: object = None):
    """Name the option at fault: a ValueError from code that knows no option becomes a UsageError.

    `--OPTION VALUE: what the ValueError says.` A UsageError passes unchanged.
    """
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        given = option if value is None else f'{option} {value}'
        raise UsageError(f'{given}: {str(error).rstrip(".")}.') from error


def shorten(value: object, limit: int = 80) -> str:
    """`repr` of a value for a message, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + '…'
