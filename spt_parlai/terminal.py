"""What a terminal that cannot show every character prints, and what is read that is no text."""

from __future__ import annotations

import contextlib
import io
import sys


def replace_what_cannot_be_encoded() -> None:
    """Print ``?`` for a character that the terminal's encoding lacks, instead of ending the program.

    Without this, a chat or evaluation on a latin-1 or ASCII terminal ends in ``UnicodeEncodeError`` at the first emoji,
    because ParlAI's scripts print texts as they are. What can be encoded is printed as before, and a stream that
    already replaces characters stays as it is. Bytes that are typed or piped and are no text in the terminal's encoding
    are read as U+FFFD, the replacement character.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ('strict', 'surrogateescape'):
            with contextlib.suppress(io.UnsupportedOperation):  # something has been read from it already
                stream.reconfigure(errors='replace')
