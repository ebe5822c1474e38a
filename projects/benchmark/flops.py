"""What a training step has to compute, counted from the LLM's shape, and what the machine can: its matrix-product rate.

* Body: 2 FLOPs per weight of a linear layer and token, forward, and as many for the gradient at its input. No weight has a gradient.
* Attention scores: a token sees itself and what is before it. Scores and their weighted sum are 2 products of 2·D FLOPs for each of
  the T(T + 1)/2 pairs of a row of T tokens and each layer, forward; the backward pass has 4 such products.
* Projection: 2·D·V forward and as many for its gradient, at each position whose logits are made.

Soft prompt tokens are tokens. Padding is none: what is computed on padding does not count, except in the naive pattern, which
pads by design. Retriever and losses (under 0.1%) are left out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

SQUARE = {'cpu': 2048, 'cuda': 8192}


@dataclass(frozen=True)
class LLMShape:
    """body: weights of the layers' linear maps; layers; D; V."""

    body: int
    layers: int
    D: int
    V: int

    @classmethod
    def of(cls, lm: torch.nn.Module) -> LLMShape:
        head = lm.get_output_embeddings()
        linear = [m for m in lm.modules() if isinstance(m, torch.nn.Linear) and m is not head]
        return cls(sum(m.weight.numel() for m in linear), lm.config.num_hidden_layers, *reversed(head.weight.shape))

    def training(self, row_lengths: Iterable[int], projected: int) -> float:
        """FLOPs of a step over rows of these lengths, logits made at `projected` positions."""
        lengths = list(row_lengths)
        pairs = sum(T * (T + 1) // 2 for T in lengths)
        return 4.0 * self.body * sum(lengths) + 12.0 * self.layers * self.D * pairs + 4.0 * self.D * self.V * projected


def matmul_rate(dtype: torch.dtype, device: torch.device, size: int = 0, repeats: int = 3) -> float:
    """FLOP/s of the product of two square matrices, the median of `repeats`."""
    n = size or SQUARE[device.type]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    took = []
    for _ in range(repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        took.append(time.perf_counter() - start)
    return 2.0 * n**3 / statistics.median(took[1:])


def synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
