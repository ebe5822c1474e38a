"""Memory and speed of two processes around the same LLM, whole and sharded (`--llm-sharding full`), in turn.

    python projects/benchmark/sharding.py --llm smollm2 [--processes 4] [--turns 4] [--tokens 320 --targets 112]

Each process trains four prompts of eight tokens on a turn of 96 tokens with 24 targets, or, with `--turns n`, on n
such rows for each prompt, or, with `--tune`, all weights with Adam on one row and no prompt. `--tokens 320 --targets
112` makes a packed dialogue of the turn. Memory is that of the process itself, without file pages that the system
shares and can drop: after loading, and at most while it trains; beside it, what `spt plan` says of the latter.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from spt_parlai.hub import DEMO
from spt_parlai.model.adapters import tune_all
from spt_parlai.model.loading import load_llm
from spt_parlai.model.sharded_tuning import TunedShares
from spt_parlai.model.sharding import of, run_along, weight_bytes
from spt_parlai.planning.estimate import Run, memory
from spt_parlai.planning.shape import shape_of


def own_memory() -> float:
    """MB."""
    with open('/proc/self/status', encoding='ascii') as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith('RssAnon'))


class Peak(threading.Thread):
    """The largest memory that is seen every 5 ms."""

    def __init__(self):
        super().__init__(daemon=True)
        self.highest = 0.0
        self.start()

    def run(self):
        while True:
            self.highest = max(self.highest, own_memory())
            time.sleep(0.005)

    def so_far(self) -> float:
        highest, self.highest = self.highest, 0.0
        return highest


def loss_of(llm, prompts: torch.Tensor, args, turns: int) -> torch.Tensor:
    """The summed NLL of a row's targets after each of some prompts, [K, L, D], of as many such rows as turns."""
    words = llm.embed(torch.arange(args.tokens)[None]).float()
    prompted = torch.cat([prompts, words.expand(len(prompts), -1, -1)], dim=1)
    rows = prompted.repeat(turns, 1, 1)  # [K turns, L + tokens, D]
    row = torch.arange(len(rows))[:, None] * rows.shape[1]
    positions = (row + torch.arange(rows.shape[1] - args.targets - 1, rows.shape[1] - 1)).flatten()
    targets = torch.arange(args.tokens - args.targets, args.tokens).repeat(len(rows))
    log_probs = llm.log_probs_at(rows, positions, targets, torch.zeros(len(targets), dtype=torch.bool)).log_probs
    return -log_probs.sum()


def prompting(llm, args, turns: int) -> Callable[[], None]:
    """A step of training prompts."""
    prompts = torch.randn(4, 8, llm.hidden_size, requires_grad=True)
    return lambda: loss_of(llm, prompts, args, turns).backward()


def tuning(llm, args) -> Callable[[], None]:
    """A step of training all weights."""
    divided = of(llm.lm)
    tuned = tune_all(llm) if divided is None else TunedShares(llm, divided)
    optimizer = torch.optim.Adam(tuned.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(llm, torch.zeros(1, 0, llm.hidden_size), args, 1).backward()
        if isinstance(tuned, TunedShares):
            tuned.complete_gradients()
        else:
            for parameter in tuned.parameters():
                dist.all_reduce(parameter.grad)
        optimizer.step()
        if isinstance(tuned, TunedShares):
            tuned.updated()

    return step


def process(rank: int, args, kind: str, folder: str, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', world_size=args.processes, rank=rank)
    prompting(load_llm(DEMO), args, 1)()  # now the libraries have what they need themselves
    before, peak = own_memory(), Peak()
    llm = load_llm(args.llm, dtype=args.dtype, sharding=kind)
    loading, loaded = peak.so_far(), own_memory()
    step = tuning(llm, args) if args.tune else prompting(llm, args, args.turns)
    times = []
    for _ in range(args.steps):
        began = time.perf_counter()
        step()
        run_along()
        dist.barrier()
        times.append(time.perf_counter() - began)
    weights = weight_bytes(llm.lm) / 2**20
    results.put((weights, loading - before, loaded - before, peak.so_far() - before, sorted(times)[len(times) // 2]))
    dist.barrier()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--llm', default='smollm2')
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--turns', type=int, default=1)
    parser.add_argument('--tokens', type=int, default=96)
    parser.add_argument('--targets', type=int, default=24)
    parser.add_argument('--steps', type=int, default=5)
    parser.add_argument('--tune', action='store_true', help='train all weights')
    parser.add_argument('--rounds', type=int, default=2)
    args = parser.parse_args()
    context = multiprocessing.get_context('spawn')
    shape = shape_of(args.llm, getattr(torch, args.dtype))
    run = Run('prompt_tuning', 1, 8, 4 * args.turns, args.tokens, 1, args.targets, tokens_at_once=10**6)
    if args.tune:
        run = Run('full', 1, 0, 1, args.tokens, 1, args.targets)
    print('sharding  weights MB  while loading MB  loaded MB  training MB  planned MB  s a step')
    for kind in ('none', 'full') * args.rounds:
        with tempfile.TemporaryDirectory() as folder:
            results = context.Queue()
            started = [
                context.Process(target=process, args=(rank, args, kind, folder, results))
                for rank in range(args.processes)
            ]
            for each in started:
                each.start()
            found = [results.get() for _ in started]
            for each in started:
                each.join()
        highest = [max(column) for column in zip(*found, strict=True)]
        planned = memory(run, shape, kind, args.processes, args.processes).training / 2**20
        print(
            '{:8}  {:10.0f}  {:16.0f}  {:9.0f}  {:11.0f}  {:10.0f}  {:8.2f}'.format(
                kind, *highest[:4], planned, highest[4]
            )
        )


if __name__ == '__main__':
    main()
