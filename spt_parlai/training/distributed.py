"""What the N processes of a training run must agree on, beyond the gradients that torch averages for them.

ParlAI starts the processes (`multiprocessing_train`, `spt_parlai.torchrun`, SLURM) and lets the first one decide and save.
Here they share one seed and one starting point, stop together, and put into a checkpoint what only the others know: their
share of an unfinished update and the states of their random generators.
"""

from __future__ import annotations

import contextlib
import signal
import threading

import torch.distributed as dist
from parlai.utils import logging
from parlai.utils.distributed import all_gather_list, get_rank, is_distributed, is_primary_worker, num_workers

from spt_parlai.errors import UsageError
from spt_parlai.model.memory_estimate import readable_size
from spt_parlai.training.seeding import random_state, restore_random_state


class AgreedInterrupt(KeyboardInterrupt):
    """Ctrl-C reached one of the processes at least, and all of them have just finished the same batch."""


def announce_synchronisation(model) -> None:
    """Say once what is exchanged. model: as wrapped by DistributedDataParallel."""
    trained = [p for p in model.parameters() if p.requires_grad]
    values, size = sum(p.numel() for p in trained), sum(p.numel() * p.element_size() for p in trained)
    logging.info(
        f'{num_workers()} processes synchronise {values:,} trained values: {readable_size(size)} per update and process over '
        f'{dist.get_backend()}.'
    )


def check_same_start(loop, model_file) -> None:
    """Refuse to train from different checkpoints: with counters that differ the processes would wait for each other forever."""
    starts = all_gather_list(loop.parleys)
    for rank, start in enumerate(starts):
        if start != starts[0]:
            raise UsageError(
                f'--model-file {model_file}: process 0 continues after {starts[0]} batches and process {rank} after {start}; '
                'put it on a file system that all machines share.'
            )


def accumulates_alone(agent):
    """A context for one batch: in the middle of an update (--update-freq) no process waits for the others' gradients.

    ParlAI enters DistributedDataParallel's `no_sync` for the backward pass alone, which is too late: the forward pass has
    already arranged for the exchange, so that every batch of an update had one.
    """
    last_of_update = (agent._number_grad_accum + 1) % agent.opt.get('update_freq', 1) == 0
    return contextlib.nullcontext() if last_of_update or not is_distributed() else agent.model.no_sync()


# ---- what a checkpoint needs from every process ----------------------------------------------------------


def average_accumulated_gradients(agent) -> None:
    """In the middle of an update (--update-freq), let every process hold the mean of what all have accumulated.

    The update's mean over processes stays what it was, and the first process's checkpoint holds all of it.
    """
    if is_distributed() and agent._number_grad_accum:
        for parameter in agent.model.parameters():
            if parameter.requires_grad:
                dist.all_reduce(parameter.grad)
                parameter.grad /= num_workers()


def random_states() -> dict:
    """The generators' states of every process, the first one's by itself, for a checkpoint's `progress`."""
    first, *others = all_gather_list(random_state())
    return {'random': first, 'random_of_others': others}


def restore_own_state(progress: dict) -> None:
    """Set the generators of this process to where they were; those of a process that is new stay as they are."""
    states = [progress.get('random'), *progress.get('random_of_others', [])]
    state = states[get_rank()] if get_rank() < len(states) else None
    if state is not None:
        restore_random_state(state)


# ---- one exchange per batch ------------------------------------------------------------------------------


def agreed_time(loop, world) -> tuple[float, float, float, float]:
    """TrainLoop._get_time for several processes: epochs are summed, the clocks are the first process's, also the one that
    saves go by. Raises AgreedInterrupt in every process if one was interrupted."""
    clocks = tuple(clock.time() for clock in (loop.train_time, loop.log_time, loop.validate_time, loop.save_time))
    epochs, clocks, interrupted = zip(*all_gather_list((world.get_total_epochs(), clocks, loop.interrupted)))
    loop._total_epochs = loop._preempted_epochs + sum(epochs)
    if any(interrupted):
        raise AgreedInterrupt
    return clocks[0]


@contextlib.contextmanager
def interrupts_noted(loop):
    """Ctrl-C is noted, for `agreed_time` to raise; during a validation, where no batch ends, it interrupts at once."""

    def note(*_):
        loop.interrupted = True

    def interruptible_validate():
        signal.signal(signal.SIGINT, previous)
        try:
            return validate()
        finally:
            signal.signal(signal.SIGINT, note)

    loop.interrupted, validate = False, loop.validate
    if threading.current_thread() is not threading.main_thread():  # where Python lets nobody handle signals
        yield
        return
    previous = signal.signal(signal.SIGINT, note)
    loop.validate = interruptible_validate
    try:
        yield
    finally:
        loop.validate = validate
        signal.signal(signal.SIGINT, previous)


def wait_for_save() -> None:
    """No process leaves an agreed stop before the first one has saved."""
    all_gather_list(is_primary_worker())
