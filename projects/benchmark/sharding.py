"""Memory and speed of two processes around the same LLM, whole and sharded (`--llm-sharding full`), in turn.

    python projects/benchmark/sharding.py --llm smollm2

Each process trains four prompts of eight tokens on rows of 96 tokens with 24 targets. Memory is that of the process
itself, without file pages that the system shares and can drop: after loading, and at most while it trains.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import threading
import time

import torch
import torch.distributed as dist

from spt_parlai.model.loading import load_llm
from spt_parlai.model.sharding import run_along, weight_bytes

LENGTH, TARGETS = 96, 24


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


def process(rank: int, args, kind: str, folder: str, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', world_size=args.processes, rank=rank)
    before, peak = own_memory(), Peak()
    llm = load_llm(args.llm, dtype=args.dtype, sharding=kind)
    loading, loaded = peak.so_far(), own_memory()
    prompts = torch.randn(4, 8, llm.hidden_size, requires_grad=True)
    times = []
    for _ in range(args.steps):
        began = time.perf_counter()
        words = llm.embed(torch.arange(LENGTH)[None]).float()
        rows = torch.cat([prompts, words.expand(4, -1, -1)], dim=1)  # [4, 8 + 96, D]
        row = torch.arange(4)[:, None] * rows.shape[1]
        positions = (row + torch.arange(rows.shape[1] - TARGETS - 1, rows.shape[1] - 1)).flatten()
        targets = torch.arange(LENGTH - TARGETS, LENGTH).repeat(4)
        log_probs, _ = llm.log_probs_at(rows, positions, targets, torch.zeros(len(targets), dtype=torch.bool))
        (-log_probs.sum()).backward()
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
    parser.add_argument('--steps', type=int, default=5)
    parser.add_argument('--rounds', type=int, default=2)
    args = parser.parse_args()
    context = multiprocessing.get_context('spawn')
    print('sharding  weights MB  while loading MB  loaded MB  training MB  s a step')
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
        print('{:8}  {:10.0f}  {:16.0f}  {:9.0f}  {:11.0f}  {:8.2f}'.format(kind, *highest))


if __name__ == '__main__':
    main()
