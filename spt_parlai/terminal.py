"""What a terminal that cannot show every character prints."""

from __future__ import annotations

import io
import sys


def replace_what_cannot_be_printed() -> None:
    """Print ``?`` for a character that the terminal's encoding lacks, instead of ending the program.

    Without this, a chat or evaluation on a latin-1 or ASCII terminal ends in ``UnicodeEncodeError`` at the first emoji,
    because ParlAI's scripts print texts as they are. What can be encoded is printed as before, and a stream that
    already replaces characters stays as it is.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ('strict', 'surrogateescape'):
            stream.reconfigure(errors='replace')
