"""ParlAI's training and evaluation as one of the processes that `torchrun` starts.

    torchrun --nproc-per-node 4 -m spt_parlai.torchrun train_model -t convai2:self -m spt_parlai.agents:SptAgent -mf F

This takes the options of `parlai multiprocessing_train` and does the same; with `eval_model` it does the same as
`parlai multiprocessing_eval`. torchrun counts the processes, on one machine or on several, and process LOCAL_RANK of a
machine works on the GPU of that number.
"""

from __future__ import annotations

import os
import sys

from parlai.scripts.multiprocessing_eval import MultiProcessEval
from parlai.scripts.multiprocessing_train import MultiProcessTrain
from parlai.utils.distributed import override_print

from spt_parlai.errors import UsageError
from spt_parlai.parlai_hooks.multiprocess import eval_worker, leave, train_worker
from spt_parlai.parlai_hooks.user_files import files_of

_COMMANDS = {
    **dict.fromkeys(('train_model', 'train', 'tm'), (MultiProcessTrain, train_worker)),
    **dict.fromkeys(('eval_model', 'eval', 'em'), (MultiProcessEval, eval_worker)),
}
_VARIABLES = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_PORT')


def main(arguments: list[str]) -> None:
    """Run `train_model …` or `eval_model …` as the process that torchrun's variables name.

    :raises UsageError: without these variables, or for another command or number of processes.
    """
    missing = [name for name in (*_VARIABLES, 'MASTER_ADDR') if not os.environ.get(name)]
    if missing:
        raise UsageError(
            f'{missing[0]} is not set: start this with torchrun (torchrun --nproc-per-node N -m spt_parlai.torchrun '
            'train_model …), or use parlai multiprocessing_train.'
        )
    if not arguments or arguments[0] not in _COMMANDS:
        given = arguments[0] if arguments else 'no command'
        raise UsageError(f'{given}: spt_parlai.torchrun runs train_model or eval_model; name one of them first.')
    script, worker = _COMMANDS[arguments[0]]
    rank, local_rank, world_size, port = (int(os.environ[name]) for name in _VARIABLES)
    with override_print(rank > 0):  # only rank 0 prints; --verbose, once parsed, enables output on the other ranks
        opt = script.setup_args().parse_args(arguments[1:])
    asked = opt['override'].get('distributed_world_size', world_size)
    if asked != world_size:
        raise UsageError(
            f'--distributed-world-size {asked}: torchrun started {world_size} processes; leave the option out.'
        )
    opt['distributed_world_size'] = world_size
    with files_of(opt):
        worker(rank, opt, port, gpu=local_rank, hostname=os.environ['MASTER_ADDR'])


if __name__ == '__main__':
    main(sys.argv[1:])
    leave()
