"""Groups of rows that go forward and backward one after the other: the memory of one group, the gradient of all.

As far as the LM is concerned, the loss is a sum over examples. What a group of them adds to the gradient is therefore
known as soon as the group has run, and its graph is freed before the next group begins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class MicroBatches:
    """A sum of losses, each of which goes backward when it is added.

    :param trained: the tensors whose gradients are accumulated. One with the attribute `sums_its_gradient` does that
        itself, in the backward pass (`sharded_tuning`).
    :param scale: multiplies each loss for its backward pass and divides its gradients afterwards (float16 loses small
        ones).
    """

    def __init__(self, trained: Sequence[Tensor], scale: float = 1.0):
        self._trained = trained
        self._scale = scale
        self._total = trained[0].new_zeros(())
        self._gradients = [None if hasattr(t, 'sums_its_gradient') else torch.zeros_like(t) for t in trained]

    def add(self, loss: Tensor) -> None:
        """Add a scalar; its graph is freed. A loss that is not finite makes every gradient NaN."""
        loss = loss * (1 + 0 * loss.detach())
        gradients = torch.autograd.grad(loss * self._scale, self._trained, allow_unused=True)
        for total, gradient in zip(self._gradients, gradients, strict=True):
            if gradient is not None and total is not None:
                total.add_(gradient, alpha=1 / self._scale)
        self._total += loss.detach().to(self._total.device)

    def sum(self) -> Tensor:
        """A scalar whose backward pass hands the accumulated gradients to the trained tensors."""
        return _Known.apply(self._total, self._gradients, *self._trained)


class _Known(torch.autograd.Function):
    """A scalar whose gradients are known already."""

    @staticmethod
    def forward(ctx, value, gradients, *trained):
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx, upstream):
        return None, None, *(None if gradient is None else upstream * gradient for gradient in ctx.gradients)
