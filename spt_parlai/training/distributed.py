"""What the processes of a training run must agree on, beyond the gradients that torch averages for them.

ParlAI starts the processes (`multiprocessing_train`, `spt_parlai.torchrun`, SLURM) and lets the first one decide and
save. Here they share one seed and one starting point, stop together, and put into a checkpoint what only the others
know: their share of an unfinished update and the states of their random generators.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from parlai.utils import distributed, logging
from parlai.utils.distributed import get_rank, is_distributed, is_primary_worker, num_workers
from torch import Tensor
from torch.nn import Parameter

from spt_parlai.errors import UsageError
from spt_parlai.model.memory_estimate import readable_size
from spt_parlai.training.seeding import random_state, restore_random_state

# ParlAI's `all_gather_list` is called as an attribute of its module, because parlai_hooks replaces it without CUDA.


class AgreedInterrupt(KeyboardInterrupt):
    """Ctrl-C reached at least one of the processes, and all of them have just finished the same batch."""


# ---- at the start ----------------------------------------------------------------------------------------


def announce_synchronisation(model) -> None:
    """Log once what the processes exchange. model: as wrapped by DistributedDataParallel."""
    trained = [p for p in model.parameters() if p.requires_grad]
    values, size = sum(p.numel() for p in trained), sum(p.numel() * p.element_size() for p in trained)
    if any(hasattr(p, 'sums_its_gradient') for p in trained):
        logging.info(
            f'{num_workers()} processes train a share of the LLM each, here {values:,} values ({readable_size(size)}), '
            f'and sum the gradients of a layer in every backward pass over {dist.get_backend()}.'
        )
        return
    logging.info(
        f'{num_workers()} processes synchronise {values:,} trained values: {readable_size(size)} per update and '
        f'process over {dist.get_backend()}.'
    )


def check_same_start(loop, model_file) -> None:
    """Refuse to train from different checkpoints: with different counters, processes would wait for each other forever.

    :raises UsageError: in every process.
    """
    starts = distributed.all_gather_list(loop.parleys)
    for rank, start in enumerate(starts):
        if start != starts[0]:
            raise UsageError(
                f'--model-file {model_file}: process 0 continues after {starts[0]} batches and process {rank} after '
                f'{start}; put it on a file system that all machines share.'
            )


# ---- in every batch --------------------------------------------------------------------------------------


def agreed_time(loop, world) -> tuple[float, float, float, float]:
    """`TrainLoop._get_time` for several processes, with one exchange: the epochs of all processes are added up, and the
    clocks, including the one for saving, are those of the first process.

    Returns the seconds of training and since the last log, validation and save.

    :raises AgreedInterrupt: in every process if one was interrupted.
    """
    clocks = tuple(clock.time() for clock in (loop.train_time, loop.log_time, loop.validate_time, loop.save_time))
    everyone = distributed.all_gather_list((world.get_total_epochs(), clocks, loop.interrupted))
    loop._total_epochs = loop._preempted_epochs + sum(epochs for epochs, _, _ in everyone)
    if any(interrupted for _, _, interrupted in everyone):
        raise AgreedInterrupt
    return everyone[0][1]


@contextlib.contextmanager
def interrupts_noted(loop):
    """Note Ctrl-C in `loop.interrupted`, for `agreed_time` to raise when the batch is complete."""

    def note(*_):
        loop.interrupted = True

    loop.interrupted = False
    with sigint_handled_by(note):
        yield


@contextlib.contextmanager
def interrupts_postponed():
    """Let Ctrl-C wait until what is within has ended."""
    received: list[Any] = []
    try:
        with sigint_handled_by(lambda *args: received.append(args)):
            yield
    finally:
        if received:
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def sigint_handled_by(handler):
    """Let `handler(signal, frame)` handle Ctrl-C, in the main thread: Python lets no other thread set a handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def of_all_processes(tensor: Tensor) -> list[Tensor]:
    """The tensors of all processes, in the order of their ranks; their shapes may differ. tensor: on the CPU."""
    if not is_distributed():
        return [tensor]
    everyone: list[Any] = [None] * num_workers()
    dist.all_gather_object(everyone, tensor)
    return everyone


# ---- what a checkpoint needs from every process ----------------------------------------------------------


def average_gradients(parameters: Iterable[Parameter]) -> None:
    """In the middle of an update (--update-freq), give every process the mean of what all have accumulated.

    The update's mean over processes stays what it was, and the first process's checkpoint holds all of it.
    """
    for parameter in parameters if is_distributed() else ():
        if parameter.requires_grad:
            dist.all_reduce(parameter.grad)
            parameter.grad /= num_workers()


def random_states() -> dict:
    """The states of every process's generators, the first process's on their own, for a checkpoint's `progress`."""
    first, *others = distributed.all_gather_list(random_state())
    return {'random': first, 'random_of_others': others}


def restore_own_state(progress: dict) -> None:
    """Restore the generators of this process; those of a process that the checkpoint does not know stay as they are."""
    states = [progress.get('random'), *progress.get('random_of_others', [])]
    state = states[get_rank()] if get_rank() < len(states) else None
    if state is not None:
        restore_random_state(state)


def wait_for_save() -> None:
    """Wait until the first process has saved, before any process leaves an agreed stop."""
    distributed.all_gather_list(is_primary_worker())
