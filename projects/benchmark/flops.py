"""The FLOPs that a training step needs, counted from the LLM's shape, and the machine's rate of matrix products.

* Body: 2 FLOPs per weight of a linear layer and token in the forward pass, and as many for the gradient at its input.
  No weight has a gradient.
* Attention: a token sees itself and all tokens before it. The scores and their weighted sum are 2 products of 2·D FLOPs
  for each of the T(T + 1)/2 pairs of a row of T tokens and for each layer; the backward pass has 4 such products.
* Projection: 2·D·V in the forward pass and as many for its gradient, at each position whose logits are computed.

Soft prompt tokens count as tokens. Computation on padding does not count, except in the naive pattern, which pads by
design. The retriever and the losses, less than 0.1%, are left out.
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
    """body: number of weights in the layers' linear maps; layers: their number; D: hidden size; V: vocabulary."""

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
        """FLOPs of a step over rows of these lengths, with logits at `projected` positions."""
        lengths = list(row_lengths)
        pairs = sum(T * (T + 1) // 2 for T in lengths)
        return 4.0 * self.body * sum(lengths) + 12.0 * self.layers * self.D * pairs + 4.0 * self.D * self.V * projected


def matmul_rate(dtype: torch.dtype, device: torch.device, size: int = 0, repeats: int = 3) -> float:
    """FLOP/s of the product of two square matrices, the median of `repeats`. size: their side, 0 for the usual one."""
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
    """Wait until a GPU has done its work, so that a clock may be read."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
