"""Groups of rows, forward and backward one after the other: the memory of one, the gradient of all.

As far as the LM is concerned the loss is a sum over examples. What a group of them adds to it is therefore known as soon as the
group has run, and with it the gradient: its graph is freed before the next group begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def run_micro_batches(trained: Sequence[Tensor], groups: Iterable[Callable[[], Tensor]], scale: float = 1.0) -> Tensor:
    """The sum of all groups' losses, a scalar whose gradients at the `trained` tensors are known already.

    groups: functions that return a scalar. scale: multiplies each loss for its backward pass, and divides the gradients
    afterwards (float16 loses small ones).
    """
    total, gradients = trained[0].new_zeros(()), [torch.zeros_like(tensor) for tensor in trained]
    for group in groups:
        loss = group()
        for gradient, part in zip(
            gradients, torch.autograd.grad(loss * scale, trained, allow_unused=True), strict=True
        ):
            if part is not None:
                gradient.add_(part, alpha=1 / scale)
        total += loss.detach().to(total.device)
    return _Known.apply(total, gradients, *trained)


class _Known(torch.autograd.Function):
    """A scalar whose gradients were made with it."""

    @staticmethod
    def forward(ctx, value, gradients, *trained):
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx, upstream):
        return None, None, *(upstream * gradient for gradient in ctx.gradients)
