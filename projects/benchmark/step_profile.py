"""The time of a step by part (the package's own functions, timed as they are called) and by kind of operation."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from flops import synchronize
from torch.profiler import ProfilerActivity, profile

from spt_parlai.model import causal_lm

PARTS = ('data', 'embedding', 'LLM forward', 'projection', 'similarity', 'objective', 'backward', 'optimizer', 'rest')
KINDS = {  # the operations of torch (`aten::…`) that make up a kind: the first whose beginning fits
    'matrix products': ('mm', 'bmm', 'addmm', 'baddbmm', 'linear'),
    'attention': ('_scaled_dot_product', '_flash_attention', '_efficient_attention'),
    'copies and casts': ('copy_', 'cat', 'index', 'gather', 'fill_', 'zero_', 'new_zeros'),
    'element-wise and the rest': ('',),
}


def profiled(trainer):
    """One step of `Ours` → (its size, seconds by part).

    The projection computes its gradient together with its logits, so `backward` is the LLM's body alone.
    """
    spent: dict[str, float] = defaultdict(float)
    running: list[list] = []  # [name, since]; only the clock of the innermost part runs

    @contextmanager
    def part(name: str):
        synchronize(trainer.device)
        now = time.perf_counter()
        if running:
            spent[running[-1][0]] += now - running[-1][1]
        running.append([name, now])
        yield
        synchronize(trainer.device)
        now = time.perf_counter()
        spent[name] += now - running.pop()[1]
        if running:
            running[-1][1] = now

    def timed(name: str, function):
        def call(*args, **kwargs):
            with part(name):
                return function(*args, **kwargs)

        return call

    model = trainer.model
    with ExitStack() as stack:
        for owner, attribute, name in (
            (trainer, 'make_batch', 'data'),
            (trainer, 'similar', 'similarity'),
            (trainer, 'objective', 'objective'),
            *([(trainer, 'token_loss', 'objective')] if trainer.token_loss else []),
            (model.llm, 'embed', 'embedding'),
            (model.llm, '_forward', 'LLM forward'),
            (causal_lm, 'token_log_probs', 'projection'),
            (torch.autograd, 'grad', 'backward'),
            (torch.Tensor, 'backward', 'backward'),
            (trainer.optimizer, 'step', 'optimizer'),
        ):
            stack.enter_context(patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        with part('rest'):
            size = trainer.step()
    return size, {name: spent[name] for name in PARTS}


def by_operation(trainer) -> dict[str, float]:
    """The share of each of `KINDS` in the time that a step spends in torch's operations."""
    on_gpu = trainer.device.type == 'cuda'
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as run:
        trainer.step()
        synchronize(trainer.device)
    spent = dict.fromkeys(KINDS, 0.0)
    for event in run.key_averages():
        name = event.key.removeprefix('aten::')
        kind = next(kind for kind, beginnings in KINDS.items() if name.startswith(beginnings))
        spent[kind] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    return {kind: time / sum(spent.values()) for kind, time in spent.items()}
