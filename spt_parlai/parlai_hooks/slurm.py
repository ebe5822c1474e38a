"""A hook of ParlAI's SLURM scripts, `parlai.scripts.distributed_train` and `distributed_eval`."""

from __future__ import annotations

import contextlib
import os

from spt_parlai.errors import UsageError


def patch_slurm_context() -> None:
    """Take the number of processes from SLURM, and refuse a start outside SLURM in one sentence.

    Breaks: without ``--distributed-world-size`` the process group gets ``None`` as its size and fails; without ``srun``
    the script ends in a traceback.
    Where: ``slurm_distributed_context``, ``parlai/utils/distributed.py:313``.
    Safe: a number that is given is kept, and ParlAI's own function does everything else.
    Goes: when ParlAI reads ``SLURM_NTASKS``.
    """
    from parlai.utils import distributed

    parlai_context = distributed.slurm_distributed_context

    @contextlib.contextmanager
    def slurm_distributed_context(opt):
        for name in ('SLURM_JOB_NODELIST', 'SLURM_PROCID', 'SLURM_LOCALID'):
            if not os.environ.get(name):
                raise UsageError(f'{name} is not set: start this with srun, or use parlai multiprocessing_train.')
        if opt.get('distributed_world_size') is None:
            tasks = os.environ.get('SLURM_STEP_NUM_TASKS') or os.environ.get('SLURM_NTASKS')
            if not tasks:
                raise UsageError(
                    'SLURM_NTASKS is not set: give --ntasks-per-node to sbatch, or --distributed-world-size.'
                )
            opt['distributed_world_size'] = int(tasks)
        with parlai_context(opt) as opt:
            yield opt

    distributed.slurm_distributed_context = slurm_distributed_context
