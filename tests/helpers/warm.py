"""New processes that need not import everything again: forks of one process that has done nothing else.

The imports of torch, ParlAI and transformers take a new process five seconds, more than most of what the tests do in
it.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.multiprocessing

IMPORTED = (
    'parlai.scripts.distributed_train',
    'parlai.scripts.multiprocessing_eval',
    'parlai.scripts.multiprocessing_train',
    'spt_parlai.agents',
    'spt_parlai.model.kv_cache',
    'transformers.models.auto.modeling_auto',
    'transformers.models.opt.modeling_opt',
)


CAN_FORK = not torch.cuda.is_available()  # a fork of a process that has counted the GPUs cannot use them


def start_method() -> str:
    """That of `multiprocessing`: Python's own fork server, where possible."""
    multiprocessing.set_forkserver_preload(list(IMPORTED))
    return 'forkserver' if CAN_FORK else 'spawn'


def patch_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the other workers of `multiprocessing_train` and `multiprocessing_eval`, where users' are spawned."""
    start = torch.multiprocessing.start_processes

    def start_warm(fn, args, **more):
        if more['start_method'] == 'spawn':
            fn, args, more['start_method'] = _with_environment, (dict(os.environ), fn, *args), start_method()
        return start(fn, args, **more)

    monkeypatch.setattr(torch.multiprocessing, 'start_processes', start_warm)


def _with_environment(number, environment, worker, *args):
    os.environ.clear()
    os.environ.update(environment)
    worker(number, *args)


class Process:
    """A function in a new process, which leads a process group and prints into a file.

    :param output: that file.
    :param function: an importable one.
    :param environment, folder: the process's environment variables and working directory; default: those of this one.
    """

    def __init__(
        self,
        output: Path,
        function: Callable,
        *args: Any,
        environment: dict[str, str] | None = None,
        folder: Path | None = None,
        **kwargs: Any,
    ):
        self.output = output
        output.touch()
        setting = (output, dict(os.environ if environment is None else environment), folder)
        self._process = multiprocessing.get_context(start_method()).Process(
            target=_run, args=(setting, function, args, kwargs)
        )
        self._process.start()
        self.pid = self._process.pid

    @property
    def printed(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(errors='replace')

    @property
    def status(self) -> int | None:
        """Its exit status, the negative number of the signal that ended it, or None while it runs."""
        return self._process.exitcode

    def wait(self, seconds: float) -> int:
        """Wait for its end; returns its status. A process that takes longer is killed."""
        self._process.join(seconds)
        self.kill()
        return self._process.exitcode

    def kill(self) -> None:
        """Make sure that it has ended."""
        self._process.kill()
        self._process.join()


def _run(setting, function, args, kwargs):
    output, environment, folder = setting
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    if folder is not None:
        os.chdir(folder)
    with open(output, 'wb') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    function(*args, **kwargs)


def script(name: str | Path, *words: object) -> None:
    """Run `python -m NAME WORDS`, or `python NAME WORDS` if NAME is a path. Processes that it would spawn are forks."""
    start = torch.multiprocessing.start_processes
    if CAN_FORK:
        torch.multiprocessing.start_processes = lambda *args, start_method, **more: start(
            *args, start_method='fork', **more
        )
    sys.argv = [str(name), *map(str, words)]
    if isinstance(name, Path):
        sys.path.insert(0, str(name.parent))
        runpy.run_path(str(name), run_name='__main__')
    else:
        sys.path.insert(0, os.getcwd())
        runpy.run_module(name, run_name='__main__')
