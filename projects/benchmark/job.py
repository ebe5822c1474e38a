"""One measurement: what is trained and how, in a process of its own, and its result."""

from __future__ import annotations

import resource
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import NamedTuple

import torch
from flops import matmul_rate, synchronize

PRELOADED = ['torch', 'transformers', 'peft', 'spt_parlai.model.prompted_lm', 'job', 'contenders']


@dataclass(frozen=True)
class Job:
    """What to measure.

    contender: a name of `contenders.CONTENDERS`; llm: see `shapes.build`; batch: dialogues if it packs, else turns;
    limit: longest context in tokens; prompt_chunk, tokens_at_once, recompute, compile: options of the package (the last
    two are `--checkpoint-activations` and `--llm-compile`); steps: how many are timed, after `warm_up` others; square:
    side of the matrices whose product gives the machine's rate, 0 for the usual one of the device.
    """

    contender: str
    llm: str
    dtype: str = 'float32'
    device: str = 'cpu'
    threads: int = 2
    K: int = 4
    L: int = 8
    batch: int = 4
    limit: int = 1024
    prompt_chunk: int = 0
    tokens_at_once: int = 0
    recompute: bool = False
    compile: bool = False
    steps: int = 1
    warm_up: int = 1
    seed: int = 0
    data: str | None = None
    tokenizer: str | None = None
    profile: bool = False
    square: int = 0


class StepSize(NamedTuple):
    """How much a step did.

    examples: turns; tokens: tokens in the LLM's rows, soft prompts included, padding excluded; computed: with padding;
    flops: see the module `flops`.
    """

    examples: int
    tokens: int
    computed: int
    flops: float


class Trainer(ABC):
    """A contender, ready to train."""

    @abstractmethod
    def step(self) -> StepSize:
        """One step: draw dialogues, make a batch, forward, backward and optimizer step."""


def in_fresh_process(job: Job) -> dict:
    """`measure` in a new process, which holds nothing but the imported libraries at its start."""
    context = get_context('forkserver' if job.device == 'cpu' else 'spawn')  # a GPU cannot be used after a fork
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(measure, job).result()


def measure(job: Job) -> dict:
    """Time steps one by one, each between two measurements of the machine's rate in the same dtype."""
    from contenders import make
    from step_profile import by_operation, profiled

    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    device, dtype = torch.device(job.device), getattr(torch, job.dtype)
    trainer = make(job)
    with_model = peak_bytes(device)
    for _ in range(job.warm_up):
        trainer.step()
    rate, steps = matmul_rate(dtype, device, job.square), []
    for _ in range(job.steps):
        synchronize(device)
        start, start_busy = time.perf_counter(), time.process_time()
        size, phases = profiled(trainer) if job.profile else (trainer.step(), {})
        synchronize(device)
        seconds, busy = time.perf_counter() - start, time.process_time() - start_busy
        before, rate = rate, matmul_rate(dtype, device, job.square)
        steps.append(
            {
                'seconds': seconds,
                'processor_seconds': busy,
                **size._asdict(),
                'matmul_flops_per_s': (before + rate) / 2,
                'phases': phases,
            }
        )
    return {
        **asdict(job),
        'steps': steps,
        'operations': by_operation(trainer) if job.profile else {},
        'peak_bytes': peak_bytes(device),
        'bytes_with_model': with_model,
    }


def run_in_rounds(jobs: Sequence[Job], rounds: int, say: Callable[[str], None]) -> list[dict]:
    """Run every job once per round, one after the other; return each job's `summary` over all rounds."""
    results: dict[Job, list[dict]] = {job: [] for job in jobs}
    for i in range(rounds):
        for job in results:
            say(f'round {i + 1} of {rounds}: {job.contender}, {job.llm}, K {job.K}, batch {job.batch}')
            results[job].append(in_fresh_process(job))
    return [summary(runs) for runs in results.values()]


def summary(runs: Sequence[dict]) -> dict:
    """Medians over all steps of a job. A step's fraction of the machine's rate uses the rates measured around it."""
    steps = [step for run in runs for step in run['steps']]
    shares = [{name: seconds / step['seconds'] for name, seconds in step['phases'].items()} for step in steps]

    def median(value):
        return statistics.median(map(value, steps))

    return {
        **runs[0],
        'steps': steps,
        'peak_bytes': max(run['peak_bytes'] for run in runs),
        'examples_per_s': median(lambda s: s['examples'] / s['seconds']),
        'tokens_per_s': median(lambda s: s['tokens'] / s['seconds']),
        'flops_per_s': median(lambda s: s['flops'] / s['seconds']),
        'matmul_flops_per_s': median(lambda s: s['matmul_flops_per_s']),
        'matmul_fraction': median(lambda s: s['flops'] / s['seconds'] / s['matmul_flops_per_s']),
        'examples_per_step': median(lambda s: s['examples']),
        'seconds_per_step': median(lambda s: s['seconds']),
        'busy_threads': median(lambda s: s['processor_seconds'] / s['seconds']),
        'padding': 1 - sum(s['tokens'] for s in steps) / sum(s['computed'] for s in steps),
        'shares': {name: statistics.median(share[name] for share in shares) for name in shares[0]},
    }


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process ever held, on the GPU or else on the machine."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
