"""Folders in the user's cache that take long to make: made once, whole or not at all, and checked before use.

Several processes may ask for the same folder at once: one makes it, the others wait. Each folder carries a list of its
files with sizes and checksums, so one that was cut off or damaged is noticed and made again.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

MANIFEST = 'manifest.json'
_BLOCK = 1 << 20

_checked: set[Path] = set()  # folders found whole by this process


def cache_root() -> Path:
    """Our folder in the user's cache, by the custom of the platform; `XDG_CACHE_HOME` decides everywhere."""
    if given := os.environ.get('XDG_CACHE_HOME'):
        base = Path(given)
    elif sys.platform == 'win32':
        base = Path(os.environ.get('LOCALAPPDATA') or Path.home() / 'AppData' / 'Local')
    else:
        base = Path.home() / ('Library/Caches' if sys.platform == 'darwin' else '.cache')
    return base / 'spt_parlai'


def cached_folder(name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder `name` of the cache. If it is missing or damaged, `make` fills an empty folder first.

    :raises OSError: if it cannot be written.
    """
    folder = cache_root() / name
    if is_whole(folder):
        return folder
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{folder}.lock'):
        if not is_whole(folder):
            for left in folder.parent.glob(f'{name}.part*'):  # by a process that was killed meanwhile
                shutil.rmtree(left, ignore_errors=True)
            part = Path(tempfile.mkdtemp(prefix=f'{name}.part', dir=folder.parent))
            try:
                make(part)
                (part / MANIFEST).write_text(json.dumps(_contents(part)), encoding='utf-8')
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(part, folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
            _checked.add(folder)
    return folder


def is_whole(folder: Path) -> bool:
    """Whether the folder has all of its files, unchanged. Their checksums are computed once in a process."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding='utf-8'))
        sizes = all((folder / file).stat().st_size == size for file, (size, _) in listed.items())
        if not sizes or folder not in _checked and _contents(folder) != listed:
            return False
    except (OSError, ValueError, TypeError, AttributeError):
        return False
    _checked.add(folder)
    return True


def _contents(folder: Path) -> dict[str, list[int]]:
    """The size and checksum of every file, by name."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    return {path.name: [path.stat().st_size, _checksum(path)] for path in files}


def _checksum(path: Path) -> int:
    total = 0
    with open(path, 'rb') as file:
        while block := file.read(_BLOCK):
            total = zlib.crc32(block, total)
    return total
