"""What a terminal that cannot show every character prints."""

from __future__ import annotations

import io
import sys


def replace_what_cannot_be_printed() -> None:
    """Print ``?`` for a character that the terminal's encoding lacks, instead of ending the program.

    Breaks: a chat or evaluation on a latin-1 or ASCII terminal ends in ``UnicodeEncodeError`` at the first emoji.
    Where: ``print(world.display())``, ``parlai/scripts/interactive.py:104``, and every other ``print`` of ParlAI's.
    Safe: what can be encoded is printed as before, and a stream that already replaces characters stays as it is.
    Goes: when ParlAI's scripts print what they can.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ('strict', 'surrogateescape'):
            stream.reconfigure(errors='replace')
