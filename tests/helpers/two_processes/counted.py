"""`spt_parlai.torchrun` that counts every collective: `torchrun … counted.py train_model …`.

Each rank writes $SEEN/collectives_{rank}.json: the parameters that DistributedDataParallel holds, the bytes of each of
its all-reduces, and the inputs of all collectives that torch's profiler saw in any thread.
"""

import json
import os
import sys
from pathlib import Path

from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

import spt_parlai.agents  # noqa: F401  (applies the patches, which the wrapper below goes around)
from spt_parlai import torchrun

held, reduced = {}, []
ddp_init = DistributedDataParallel.__init__


def init(self, *args, **kwargs):
    ddp_init(self, *args, **kwargs)
    held.update((name, p.numel()) for name, p in self.module.named_parameters())

    def counting(group, bucket):
        reduced.append(bucket.buffer().numel() * bucket.buffer().element_size())
        return allreduce_hook(group, bucket)

    self.register_comm_hook(None, counting)


def main():
    DistributedDataParallel.__init__ = init
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        torchrun.main(sys.argv[1:])
    recorded = profiler.profiler.kineto_results.events()  # `profiler.events()` takes ten seconds to link all of them
    collectives = [(event.name(), event.shapes()) for event in recorded if event.name().startswith('gloo:')]
    folder = Path(os.environ['SEEN'])
    (folder / f'collectives_{os.environ["RANK"]}.json').write_text(
        json.dumps({'held': held, 'reduced': reduced, 'collectives': collectives})
    )


if __name__ == '__main__':
    main()
