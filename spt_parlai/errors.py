"""The one exception that a user of this package should ever see, and functions that build its messages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UsageError(SystemExit, ValueError):
    """A mistake that the user can correct: one sentence that names the option or file, the value and the way out.

    As a `SystemExit` it ends a command with that sentence on stderr and exit status 1, without a traceback.
    As a `ValueError` it can be caught like any other by code that calls the package.
    """


def explained(kind: type[Exception], sentence: str) -> UsageError:
    """A UsageError that is also of the class that ParlAI raises there, for code that catches it.

    :param kind: a class whose instances hold nothing but their arguments, such as RuntimeError.
    """
    return type('UsageError', (UsageError, kind), {})(sentence)


@contextlib.contextmanager
def naming(option: str, value: object = None) -> Iterator[None]:
    """Turn a ValueError from code that knows no option into a UsageError that names the option and its value.

    The message becomes `OPTION VALUE: message of the ValueError.` A UsageError passes unchanged.
    """
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        given = option if value is None else f'{option} {value}'
        raise UsageError(f'{given}: {str(error).rstrip(".")}.') from error


def flag(name: str) -> str:
    """An option as it is written on the command line: `num_prompts` → `--num-prompts`."""
    return '--' + name.replace('_', '-')


def refused(name: str, value: object, way_out: str) -> UsageError:
    """The error for an option's value: `--NAME VALUE: way out.`"""
    return UsageError(f'{flag(name)} {shorten(value)}: {way_out}.')


def shorten(value: object, limit: int = 80) -> str:
    """The `repr` of a value for a message, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + '…'
