"""A user's text file as lines."""

from __future__ import annotations

import codecs
from pathlib import Path


def read_lines(path: str | Path) -> list[str]:
    r"""The lines of a UTF-8 text file, without their ends and without a byte order mark.

    Only "\n" and "\r\n" end a line. Other characters at which `str.splitlines` splits, such as U+2028 or a form feed,
    are text.

    :raises ValueError: that says why the file cannot be read, and in which line.
    """
    try:
        lines = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).split(b'\n')
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if not lines[-1]:
        del lines[-1]
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(line.rstrip(b'\r').decode())
        except UnicodeDecodeError as error:
            raise ValueError(f'line {number} is not UTF-8 text') from error
        if b'\0' in line:
            raise ValueError(f'line {number} is not UTF-8 text, but binary data')
    return texts
