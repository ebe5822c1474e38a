"""One training run at a time writes a model file.

The lock is the operating system's (`fcntl.lockf`), on a small file beside the model file. It ends with its process,
however that ends, and a process that was forked from it, such as one of `--num-workers`, does not hold it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
from io import TextIOWrapper
from pathlib import Path

from spt_parlai.errors import UsageError

try:
    import fcntl
except ImportError:  # on Windows, where two runs are not noticed
    fcntl = None  # type: ignore[assignment]

_held: dict[tuple[int, str], TextIOWrapper] = {}  # (process, path of the lock) → its open file


def hold(model_file: str) -> None:
    """Lock a model file until `release`, or the end of this process, which may call this again for the same file.

    A file system without locks is none of the user's mistakes: nothing is locked there.

    :raises UsageError: if another process holds it.
    """
    path = os.path.abspath(f'{model_file}.lock')
    if fcntl is None or (os.getpid(), path) in _held:
        return
    with contextlib.suppress(OSError):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = open(path, 'a+', encoding='utf-8')  # noqa: SIM115  closing it would end the lock
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                file.seek(0)
                owner = file.read().strip() or 'another process'
                raise UsageError(
                    f'--model-file {model_file}: {owner} is training it now; wait for its end, or give another path.'
                ) from error
            if _is_still(path, file):
                break
            file.close()  # its owner has just ended and removed it
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}')
        file.flush()
        _held[os.getpid(), path] = file
        atexit.register(release, model_file)


def _is_still(path: str, file: TextIOWrapper) -> bool:
    """Whether the open file is the one that has this path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def release(model_file: str) -> None:
    """Remove the lock of this process, if it holds one."""
    path = os.path.abspath(f'{model_file}.lock')
    file = _held.pop((os.getpid(), path), None)
    if file is not None:
        with contextlib.suppress(OSError):
            os.unlink(path)  # before the lock ends: afterwards it may be another process's
            file.close()
