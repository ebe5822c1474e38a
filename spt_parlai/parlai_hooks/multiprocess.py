"""Multi-process training and evaluation of ParlAI 1.7.2 without CUDA.

ParlAI gives every worker a GPU: without one, ``multiprocessing_train`` and
``multiprocessing_eval`` fail as soon as they count the GPUs. Here the workers meet
over gloo and stay on the CPU. Where CUDA is available, only :func:`patch_workers` is
installed: the spawned workers import this package, hence every hook, before they work.
"""

import contextlib
import copy
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import util
from typing import Any

from spt_parlai.errors import UsageError

# How long the first worker may outlive another worker's failure, in seconds.
_GRACE = 10

# How long after the first worker's failure another one's death is noticed, in seconds.
_NOTICED = 2

# How long gloo's threads get to release their last tensors while Python still runs, in seconds.
_LET_GO = 0.1

# A gloo process group that is destroyed while the interpreter shuts down can wait
# forever for its own threads. When ParlAI's and torch's objects drop their
# references depends on garbage collection, so one more is kept here.
_process_groups: list[Any] = []

# ParlAI's own worker functions, by script.
_parlai_workers: dict[str, Callable[..., Any]] = {}


def patch_workers() -> None:
    """Make a spawned worker import this package before it works.

    Breaks: spawned workers run without the hooks, because they import only the module
    of the function they are given, which is ParlAI's.
    Where: ``parlai/scripts/multiprocessing_train.py:36`` and
    ``parlai/scripts/multiprocessing_eval.py:34``.
    Safe: the replacements call ParlAI's functions with the same arguments.
    Goes: with the last of the other hooks.
    """
    from parlai.scripts import multiprocessing_eval, multiprocessing_train

    _parlai_workers['train'] = multiprocessing_train.multiprocess_train
    _parlai_workers['eval'] = multiprocessing_eval.multiprocess_eval
    multiprocessing_train.multiprocess_train = train_worker
    multiprocessing_eval.multiprocess_eval = eval_worker


def train_worker(*args, **kwargs):
    """ParlAI's ``multiprocess_train``, from a module that installs the hooks."""
    return _work('train', *args, **kwargs)


def eval_worker(*args, **kwargs):
    """ParlAI's ``multiprocess_eval``, from a module that installs the hooks."""
    return _work('eval', *args, **kwargs)


def _work(kind, rank, opt, port=61337, rank_offset=0, **kwargs):
    report = _parlai_workers[kind](rank, opt, port, rank_offset, **kwargs)
    if rank_offset:  # a spawned process, which has nothing else to do
        leave()
    return report


def leave() -> None:
    """End this process, whose work is done, without shutting the interpreter down.

    A thread of gloo's that releases its last tensor during the shutdown would abort
    the process, and a run that succeeded would end as a failure. What multiprocessing
    has to clean up is done first: a semaphore that is left, such as the lock of a
    progress bar, would be reported as leaked.
    """
    util._run_finalizers(0)  # type: ignore[attr-defined]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def patch_launchers() -> None:
    """End the whole run when one of its workers fails.

    Breaks: the first worker waits for half an hour for one that failed before it
    joined the group; a failure in the first worker leaves the others running; with
    three workers or more, a late failure of one does not reach the exit status. And
    without CUDA the number of workers is 0 unless it is given.
    Where: ``launch_and_train``, ``parlai/scripts/multiprocessing_train.py:60``, and
    ``launch_and_eval``, ``parlai/scripts/multiprocessing_eval.py:52``.
    Safe: a run that succeeds starts and joins the same processes.
    Goes: with :func:`patch_distributed_context`.
    """
    from parlai.scripts import multiprocessing_eval, multiprocessing_train

    multiprocessing_train.launch_and_train = launch_training
    multiprocessing_eval.launch_and_eval = launch_evaluation


def launch_training(opt, port=None):
    """Train in ``distributed_world_size`` processes, of which this is the first."""
    return _launch(train_worker, opt, port)


def launch_evaluation(opt, port=None):
    """Evaluate in ``distributed_world_size`` processes, of which this is the first."""
    return _launch(eval_worker, opt, port)


def _launch(worker, opt, port):
    from parlai.utils.distributed import find_free_port
    from torch.multiprocessing import start_processes

    opt = copy.deepcopy(opt)
    opt['distributed_world_size'] = max(1, opt['distributed_world_size'])
    port = port or find_free_port()
    others = start_processes(
        worker,
        (opt, port, 1),  # the others' ranks start at 1
        nprocs=opt['distributed_world_size'] - 1,
        join=False,
        start_method='spawn',
    )
    finished = threading.Event()
    # One thread alone joins the others: two of them can lose an exit status.
    watch = ThreadPoolExecutor(1).submit(_watch, others, finished)
    try:
        result = worker(0, opt, port)
        finished.set()
        watch.result()  # raises what another worker failed with
        return result
    except BaseException as error:
        # Also Ctrl-C, which a worker inside a collective does not notice.
        finished.set()
        died = _who_died(watch) if isinstance(error, RuntimeError) else None
        _terminate(others)
        if died:
            raise UsageError(died) from error
        raise


def _watch(others, finished):
    """Join the other workers; end this process if one failed and it does not notice.

    A worker that waits for another one inside torch cannot be interrupted by Python.
    """
    try:
        while not others.join():
            pass
    except Exception as failure:
        if not finished.wait(_GRACE):
            print(_death(failure) or failure, file=sys.stderr, flush=True)
            os._exit(1)
        raise


def _who_died(watch):
    """The sentence for a worker that died, because of which the first one failed in a collective; None if none did."""
    try:
        return _death(watch.exception(_NOTICED))
    except TimeoutError:
        return None


def _death(failure):
    from torch.multiprocessing.spawn import ProcessExitedException

    if not isinstance(failure, ProcessExitedException):
        return None
    end = failure.signal_name or f'exit status {failure.exit_code}'
    return (
        f'process {failure.error_index + 1} was ended by {end}; the same command continues from the last checkpoint '
        '(SIGKILL often means that the memory was used up).'
    )


def _terminate(others):
    for process in others.processes:
        process.terminate()
    for process in others.processes:
        process.join()


def patch_all_gather_list() -> None:
    """Gather Python objects without CUDA buffers.

    Breaks: ``AssertionError: Torch not compiled with CUDA enabled`` at the first
    synchronisation, as objects are exchanged in CUDA tensors.
    Where: ``parlai/utils/distributed.py:142`` and ``:151``; other modules import the
    function by name.
    Safe: torch's ``all_gather_object`` has the same result: every worker's object, in
    the order of the ranks. ``sync_object`` is built on this function.
    Goes: when ParlAI exchanges objects on the backend's own device.
    """
    from parlai.scripts import eval_model, tod_world_script, train_model  # noqa: F401
    from parlai.utils import distributed

    parlai_all_gather_list = distributed.all_gather_list

    def all_gather_list(data):
        import torch.distributed as dist

        if not distributed.is_distributed():
            return [data]
        gathered = [None] * distributed.num_workers()
        dist.all_gather_object(gathered, data)
        return gathered

    modules: list[tuple[str, Any]] = list(sys.modules.items())
    for name, module in modules:
        if name.startswith('parlai.') and getattr(module, 'all_gather_list', None) is parlai_all_gather_list:
            module.all_gather_list = all_gather_list


def patch_distributed_context() -> None:
    """Start a distributed run over gloo.

    Breaks: ``ZeroDivisionError``, then nccl and ``torch.cuda.init`` fail.
    Where: ``parlai/utils/distributed.py:260``, ``:279`` and ``:287``.
    Safe: used only where ParlAI's own function cannot work.
    Goes: when ParlAI chooses the backend by the device.
    """
    from parlai.utils import distributed

    distributed.distributed_context = distributed_context


@contextlib.contextmanager
def distributed_context(rank, opt, rank_offset=0, gpu=None, init_method='tcp://localhost:61337'):
    """ParlAI's ``distributed_context`` for the CPU; ``gpu`` is not used."""
    import torch
    import torch.distributed as dist
    from parlai.utils.distributed import get_dist_group, override_print, sync_object

    rank += rank_offset
    opt = copy.deepcopy(opt)
    opt['rank'] = rank
    opt['gpu'] = -1
    # The model's option file may name a GPU, which this overrides.
    opt.setdefault('override', {})['gpu'] = -1
    verbose = opt.get('verbose')
    prefix = f'rank:{rank:3d} |' if verbose or rank else None

    with override_print(bool(rank and not verbose), prefix):
        dist.init_process_group(
            'gloo',
            init_method=init_method,
            world_size=opt['distributed_world_size'],
            rank=rank,
        )
        _process_groups.append(get_dist_group())
        try:
            with _share_of_threads(opt['distributed_world_size']):
                # All workers start with the same seed, at the same time.
                torch.manual_seed(42)
                sync_object(None)
                yield opt
        finally:
            dist.destroy_process_group()
            time.sleep(_LET_GO)


@contextlib.contextmanager
def _share_of_threads(num_workers):
    """Divide torch's threads among the workers, unless the user has set them."""
    import torch

    threads = torch.get_num_threads()
    if 'OMP_NUM_THREADS' not in os.environ:
        torch.set_num_threads(max(1, threads // num_workers))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run_along_before_collectives() -> None:
    """Let a process that waits at a collective take part in the gathers of ``--llm-sharding`` until it begins.

    Breaks: with a sharded LLM a process that validates, generates or has nothing left to do waits at its next
    collective, and the others wait for it to gather a layer with them.
    Where: torch's collectives, as ParlAI and torch's ``Join`` call them.
    Safe: the collective is torch's own. Without a sharded LLM nothing happens before it.
    Goes: when torch gathers shards without the other process's help.
    """
    import torch.distributed as dist

    from spt_parlai.model import sharding

    for name in ('all_reduce', 'all_gather', 'all_gather_object', 'broadcast', 'broadcast_object_list', 'barrier'):
        setattr(dist, name, sharding.after_running_along(getattr(dist, name)))
    destroy = dist.destroy_process_group

    def destroy_process_group(group=None):
        sharding.forget()
        destroy(group)

    dist.destroy_process_group = destroy_process_group


def keep_shares() -> None:
    """Leave every process its share of an LLM whose weights all train.

    Breaks: ParlAI gives all processes the first one's trained tensors, which overwrites the other shares.
    Where: ``parlai/core/torch_generator_agent.py:549``.
    Safe: other models are synchronised as before. Weights that all processes have come from the same files.
    Goes: when ParlAI asks the model which of its tensors are the same everywhere.
    """
    from parlai.core import torch_generator_agent

    parlai_sync = torch_generator_agent.sync_parameters

    def sync_parameters(model):
        divided = any(hasattr(parameter, 'sums_its_gradient') for parameter in model.parameters())
        return True if divided else parlai_sync(model)

    torch_generator_agent.sync_parameters = sync_parameters


def patch_join_device() -> None:
    """Let workers wait for each other on the CPU.

    Breaks: ``RuntimeError`` when the loop ends: torch makes a tensor on the device
    that ParlAI names, ``-1`` without a GPU.
    Where: ``parlai/utils/fsdp.py:235`` and ``:287``.
    Safe: without CUDA every tensor is on the CPU.
    Goes: when ParlAI names a device instead of a GPU's number.
    """
    import torch
    from parlai.utils.fsdp import JoinableEvaluator, JoinableTrainLoop

    on_cpu = property(lambda self: torch.device('cpu'))
    JoinableTrainLoop.join_device = on_cpu
    JoinableEvaluator.join_device = on_cpu


def patch_data_parallel() -> None:
    """Wrap a model on the CPU in ``DistributedDataParallel``.

    Breaks: ``ValueError``, as ParlAI passes ``device_ids=[gpu]`` with ``gpu`` -1.
    Where: ``parlai/core/torch_generator_agent.py:584``, ``torch_ranker_agent.py:255``.
    Safe: changes only the call with ``[-1]``, which no device has.
    Goes: when ParlAI passes no ``device_ids`` for a model on the CPU.
    """
    from torch.nn.parallel import DistributedDataParallel

    torch_init = DistributedDataParallel.__init__

    def init(self, module, device_ids=None, *args, **kwargs):
        if device_ids == [-1]:
            device_ids = None
        torch_init(self, module, device_ids, *args, **kwargs)

    DistributedDataParallel.__init__ = init  # type: ignore[method-assign]
