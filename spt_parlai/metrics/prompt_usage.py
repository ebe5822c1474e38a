"""Metrics of prompt selection: how often each prompt is used, how evenly, and what the selection is worth."""

from __future__ import annotations

import math
from collections.abc import Iterator

from parlai.core.metrics import AverageMetric, Metric
from torch import Tensor


class UsageEntropy(Metric):
    """Entropy of the selected prompts' distribution over its maximum ln K: 1 is even use, 0 is a collapse.

    The counts of batches and processes add up.

    :param counts: how often each of the K prompts was selected.
    """

    __slots__ = ('_counts',)

    def __init__(self, counts: tuple[int, ...]):
        self._counts = tuple(counts)

    @classmethod
    def selected(cls, prompt: int, num_prompts: int) -> UsageEntropy:
        """The metric of one example."""
        return cls(tuple(int(i == prompt) for i in range(num_prompts)))

    def __add__(self, other: UsageEntropy | None) -> UsageEntropy:
        if other is None:
            return self
        return UsageEntropy(tuple(a + b for a, b in zip(self._counts, other._counts, strict=True)))

    def value(self) -> float:
        total = sum(self._counts)
        if total == 0 or len(self._counts) < 2:
            return 0.0
        shares = [count / total for count in self._counts if count]
        return sum(p * math.log(1 / p) for p in shares) / math.log(len(self._counts))


def usage_metrics(selected: Tensor, nll: Tensor) -> Iterator[tuple[str, list[Metric]]]:
    """Name and one metric per example.

    The gains are in nats per target token: how much smaller the NLL under the selected prompt, and under the best
    prompt in hindsight, is than under a prompt drawn at random.

    :param selected: int64 [B], each example's selected prompt.
    :param nll: float32 [K, B], each prompt's mean NLL per target token.
    """
    K = len(nll)
    for k in range(K):
        yield f'prompt_usage_{k}', AverageMetric.many((selected == k).int().tolist())
    yield 'prompt_usage_entropy', [UsageEntropy.selected(prompt, K) for prompt in selected.tolist()]
    nll = nll.detach()
    gain = nll.mean(0) - nll  # [K, B]
    yield 'selected_gain', AverageMetric.many(gain.gather(0, selected[None].to(gain.device))[0].tolist())
    yield 'best_gain', AverageMetric.many(gain.amax(0).tolist())
