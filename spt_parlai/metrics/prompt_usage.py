"""How evenly the soft prompts are used: a corpus-level metric that adds up over batches and workers."""

from __future__ import annotations

import math

from parlai.core.metrics import Metric


class UsageEntropy(Metric):
    """Entropy of the selected prompts' distribution as a share of its maximum ln K: 1 is even use, 0 a collapse.

    :param counts: how often each of the K prompts was selected.
    """

    __slots__ = ('_counts',)

    def __init__(self, counts: tuple[int, ...]):
        self._counts = tuple(counts)

    @classmethod
    def selected(cls, prompt: int, num_prompts: int) -> UsageEntropy:
        return cls(tuple(int(i == prompt) for i in range(num_prompts)))

    def __add__(self, other: UsageEntropy | None) -> UsageEntropy:
        if other is None:
            return self
        return UsageEntropy(tuple(a + b for a, b in zip(self._counts, other._counts, strict=True)))

    def value(self) -> float:
        total = sum(self._counts)
        if total == 0 or len(self._counts) < 2:
            return 0.0
        shares = [c / total for c in self._counts if c]
        return sum(p * math.log(1 / p) for p in shares) / math.log(len(self._counts))
