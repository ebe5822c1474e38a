"""ParlAI's commands as forks of a process that has imported everything, which takes a new process ten seconds."""

from __future__ import annotations

import multiprocessing
import os
import resource
import runpy
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

PRELOADED = (
    'parlai.scripts.eval_model',
    'parlai.scripts.train_model',
    'spt_parlai.agents',
    'spt_parlai.model.kv_cache',
    'transformers.models.auto.modeling_auto',
    'transformers.models.llama.modeling_llama',
    'transformers.models.opt.modeling_opt',
)


def prepare() -> None:
    """Before the first `Command`: name what is imported, and let torch count the GPUs in a way that a fork survives."""
    os.environ.setdefault('PYTORCH_NVML_BASED_CUDA_CHECK', '1')
    multiprocessing.set_forkserver_preload(list(PRELOADED))


class Command:
    """`python -m MODULE WORDS` in a fork of the warm process, with a process group of its own.

    :param words: the command, from the name of the module.
    :param log: the file to which its output is appended.
    :param environment: variables that differ from those of this process. OMP_NUM_THREADS is read by torch at its
        import, so the number is set in the fork.
    """

    def __init__(self, words: Sequence[str], log: Path, environment: dict[str, str]):
        context = multiprocessing.get_context('forkserver')
        self._ended, sent = context.Pipe(duplex=False)
        self._process = context.Process(target=_run, args=(list(words), log, environment, sent))
        self._process.start()
        sent.close()

    def wait(self) -> tuple[int, float]:
        """Wait for the end; returns the exit status and the seconds of processor time (0 if it was killed)."""
        try:
            ended = self._ended.recv()
        except EOFError:
            ended = None
        self._process.join()  # an error's message is printed after the status is sent
        return ended or (self._process.exitcode or 1, 0.0)

    def interrupt(self) -> None:
        """Send SIGINT."""
        if self._process.is_alive():
            os.kill(self._process.pid or 0, signal.SIGINT)


def _run(words: list[str], log: Path, environment: dict[str, str], ended: Connection) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    with log.open('ab') as file, open(os.devnull, 'rb') as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    torch.set_num_threads(int(environment.get('OMP_NUM_THREADS', torch.get_num_threads())))
    sys.argv = words
    status = 1
    try:
        runpy.run_module(words[0], run_name='__main__', alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        raise
    finally:
        used = resource.getrusage(resource.RUSAGE_SELF)
        ended.send((status, used.ru_utime + used.ru_stime))
