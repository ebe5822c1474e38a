"""Metrics of all replies together, such as corpus BLEU, which are not means over replies.

Over batches and processes they add up to what one batch of all replies would give. Over several tasks ParlAI reports
the mean of the tasks, unless `--aggregate-micro true` makes one corpus of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Self

import numpy as np
from parlai.core.metrics import Metric
from sacrebleu.metrics import BLEU

from spt_parlai.metrics.diversity import entropy, ngrams, self_bleu

# This scorer only counts one reply's n-grams; the score that it gives is not used.
_counter = BLEU(tokenize='13a', smooth_method='exp', effective_order=True)
ORDERS = _counter.max_ngram_order


class CorpusBleu(Metric):
    """sacrebleu's corpus BLEU, `case:mixed|eff:no|tok:13a|smooth:exp`, 0 to 100, or one of its n-gram precisions.

    :param statistics: ten counts, which add up: the lengths of the reply and of the reference, then for n from 1 to 4
        the matched n-grams, then for n from 1 to 4 all n-grams of the reply.
    :param order: n of the precision to report; None reports BLEU itself.
    """

    __slots__ = ('_statistics', '_order')

    def __init__(self, statistics: Sequence[int], order: int | None = None):
        self._statistics = tuple(statistics)
        self._order = order

    @classmethod
    def of(cls, reply: str, references: tuple[str, ...], order: int | None = None) -> CorpusBleu:
        """The metric of one reply."""
        return cls(_statistics(reply, references), order)

    @property
    def macro_average(self) -> bool:
        """Over several tasks report the mean of their values, as for ParlAI's f1, unless `--aggregate-micro true`."""
        return True

    def __add__(self, other: CorpusBleu | None) -> CorpusBleu:
        if other is None:
            return self
        return CorpusBleu([a + b for a, b in zip(self._statistics, other._statistics, strict=True)], self._order)

    def value(self) -> float:
        reply_length, reference_length, *counts = self._statistics
        score = BLEU.compute_bleu(counts[:ORDERS], counts[ORDERS:], reply_length, reference_length, smooth_method='exp')
        return score.score if self._order is None else score.precisions[self._order - 1]

    def __reduce__(self):
        return CorpusBleu, (self._statistics, self._order)


@lru_cache(maxsize=1)  # BLEU and its precisions are asked for the same reply one after the other
def _statistics(reply: str, references: tuple[str, ...]) -> tuple[int, ...]:
    score = _counter.sentence_score(reply, list(references))
    return score.sys_len, score.ref_len, *score.counts, *score.totals


class Gathered(Metric):
    """Base class of metrics that keep what each reply contributes, in order, and compute their value from all of it.

    ParlAI adds metrics up reply by reply and may keep any of the sums, so `+` must change neither operand. To keep
    that cheap, sums share one list, and each knows how much of it is its own; an addition copies only what is added.
    """

    __slots__ = ('_shared', '_length')

    def __init__(self, items: Iterable = ()):
        self._shared = list(items)
        self._length = len(self._shared)

    @property
    def macro_average(self) -> bool:
        """Over several tasks report the mean of their values, as for ParlAI's f1, unless `--aggregate-micro true`."""
        return True

    def items(self) -> list:
        """What the replies contributed, in order."""
        return self._shared[: self._length]

    def __add__(self, other: Self | None) -> Self:
        if other is None:
            return self
        added = other.items()
        total = self._like(self._shared if len(self._shared) == self._length else self.items())
        total._shared += added
        total._length = len(total._shared)
        return total

    def _like(self, shared: list) -> Self:
        """A metric of the same kind around this very list. A subclass copies its own attributes, too."""
        like = type(self).__new__(type(self))
        like._shared, like._length = shared, len(shared)
        return like

    def __reduce__(self):
        return type(self), (self.items(),)


class Distinct(Gathered):
    """Distinct n-grams as a share of all n-grams of all replies, 0 to 100.

    :param replies: the texts of the replies. N-grams are of words and do not cross from one reply into the next.
    :param orders: the values of n; if there are several, the value is the mean of their shares.
    """

    __slots__ = ('_orders',)

    def __init__(self, replies: Iterable[str], orders: Sequence[int]):
        super().__init__(replies)
        self._orders = tuple(orders)

    def _like(self, shared: list) -> Self:
        like = super()._like(shared)
        like._orders = self._orders
        return like

    def value(self) -> float:
        return sum(_distinct(list(ngrams(self.items(), n))) for n in self._orders) / len(self._orders)

    def __reduce__(self):
        return Distinct, (self.items(), self._orders)


class NgramEntropy(Gathered):
    """Ent-n (Zhang et al., 2018): the entropy in nats of the n-grams of all replies together.

    :param replies: the texts of the replies. N-grams are of words and do not cross from one reply into the next.
    """

    __slots__ = ('_order',)

    def __init__(self, replies: Iterable[str], order: int):
        super().__init__(replies)
        self._order = order

    def _like(self, shared: list) -> Self:
        like = super()._like(shared)
        like._order = self._order
        return like

    def value(self) -> float:
        counts = np.array(list(Counter(ngrams(self.items(), self._order)).values()), dtype=float)
        return float(entropy(counts)) if len(counts) else 0.0

    def __reduce__(self):
        return NgramEntropy, (self.items(), self._order)


class SelfBleu(Gathered):
    """Self-BLEU (Zhu et al., 2018): the mean BLEU of every reply against all others, 0 to 100; low is diverse."""

    __slots__ = ()

    def value(self) -> float:
        scores = self_bleu(self.items())
        return sum(scores) / len(scores) if scores else 0.0


def _distinct(ngrams: Sequence) -> float:
    return 100 * len(set(ngrams)) / len(ngrams) if ngrams else 0.0
