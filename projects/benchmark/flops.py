"""The FLOPs that a training step needs, counted from the LLM's shape, and the machine's rate of matrix products.

* Body: 2 FLOPs per weight of a linear layer and token in the forward pass, and as many for the gradient at its input.
  No weight has a gradient.
* Attention: a token sees itself and all tokens before it. The scores and their weighted sum are 2 products of 2·A FLOPs
  for each of the T(T + 1)/2 pairs of a row of T tokens and for each layer, where A is the width of all heads together;
  the backward pass has 4 such products.
* Projection: 2·D·V in the forward pass and as many for its gradient, at each position whose logits are computed.

Soft prompt tokens count as tokens. Computation on padding does not count, except in the naive pattern, which pads by
design. The retriever and the losses, less than 0.1%, are left out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

SQUARE = {'cpu': 2048, 'cuda': 8192}


@dataclass(frozen=True)
class LLMShape:
    """body: number of weights in the layers' linear maps; layers: their number; width: that of all heads of a layer;
    D: hidden size; V: vocabulary."""

    body: int
    layers: int
    width: int
    D: int
    V: int

    @classmethod
    def of(cls, lm: torch.nn.Module) -> LLMShape:
        head = lm.get_output_embeddings()
        linear = [m for m in lm.modules() if isinstance(m, torch.nn.Linear) and m is not head]
        V, D = head.weight.shape
        config = lm.config
        width = config.num_attention_heads * (getattr(config, 'head_dim', None) or D // config.num_attention_heads)
        return cls(sum(m.weight.numel() for m in linear), config.num_hidden_layers, width, D, V)

    def forward(self, row_lengths: Sequence[int], projected: int) -> float:
        """FLOPs of a pass over rows of these lengths, with logits at `projected` positions."""
        return 2.0 * (self.body * sum(row_lengths) + self.D * self.V * projected) + self._attention(row_lengths)

    def training(self, row_lengths: Sequence[int], projected: int) -> float:
        """FLOPs of a step: those of `forward` and of its backward pass."""
        return 2 * self.forward(row_lengths, projected) + self._attention(row_lengths)

    def _attention(self, row_lengths: Sequence[int]) -> float:
        return 4.0 * self.layers * self.width * sum(T * (T + 1) // 2 for T in row_lengths)


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
