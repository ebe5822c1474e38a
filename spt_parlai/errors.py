"""The one exception a user should ever see from this package."""

from __future__ import annotations


class UsageError(SystemExit, ValueError):
    """A mistake the user can mend: one sentence naming the option or file, the value and the way out.

    As a `SystemExit` it ends a command with that sentence on stderr and exit status 1, without a traceback;
    as a `ValueError` it can be caught like any other by code that calls the package.
    """


def shorten(value: object, limit: int = 80) -> str:
    """`repr` of a value for a message, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + '…'
