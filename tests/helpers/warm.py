"""New processes that need not import everything again: forks of one process that has done nothing else.

The imports of torch, ParlAI and transformers take a new process five seconds, more than most of what the tests do in
it.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

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


def context():
    """Python's own fork server, as a context of `multiprocessing`."""
    multiprocessing.set_forkserver_preload(list(IMPORTED))
    return multiprocessing.get_context('forkserver')


def patch_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the other workers of `multiprocessing_train` and `multiprocessing_eval`, where users' are spawned."""
    start = torch.multiprocessing.start_processes

    def start_warm(fn, args, start_method, **more):
        if start_method == 'spawn':
            context()
            fn, args, start_method = _with_environment, (dict(os.environ), fn, *args), 'forkserver'
        return start(fn, args, start_method=start_method, **more)

    monkeypatch.setattr(torch.multiprocessing, 'start_processes', start_warm)


class Script:
    """One of ParlAI's scripts in a process of its own: `python -m MODULE WORDS`, with an environment and an output."""

    def __init__(self, module: str, words: Sequence[str], environment: dict[str, str], output: Path):
        self.output = output
        self._process = context().Process(target=_run, args=(module, words, environment, output))
        self._process.start()

    def wait(self, seconds: float) -> int:
        """Wait for its end; returns its exit status. A process that takes longer is killed."""
        self._process.join(seconds)
        self.kill()
        return self._process.exitcode

    def kill(self) -> None:
        """Make sure that it has ended."""
        self._process.kill()
        self._process.join()


def _run(module, words, environment, output):
    os.environ.clear()
    os.environ.update(environment)
    with open(output, 'wb') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name='__main__')


def _with_environment(number, environment, worker, *args):
    os.environ.clear()
    os.environ.update(environment)
    worker(number, *args)
