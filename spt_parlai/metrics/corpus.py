"""Metrics of a whole corpus of replies: they add up over batches and processes, and are no mean over replies.

Metrics that can only be computed over all replies at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from parlai.core.metrics import Metric
from sacrebleu.metrics import BLEU

from spt_parlai.metrics.reply import words

_statistics_of = BLEU(
    tokenize='13a', smooth_method='exp', effective_order=True
)  # one reply's counts: its score is not used
ORDERS = _statistics_of.max_ngram_order


class CorpusBleu(Metric):
    """sacrebleu's corpus BLEU, `case:mixed|eff:no|tok:13a|smooth:exp`, 0 to 100, or one of its n-gram precisions.

    :param statistics: reply and reference length, matched n-grams and n-grams for n = 1 … 4: ten counts, which add up.
    :param order: n of the precision to report; None for BLEU itself.
    """

    __slots__ = ('_statistics', '_order')

    def __init__(self, statistics: Sequence[int], order: int | None = None):
        self._statistics = tuple(statistics)
        self._order = order

    @classmethod
    def all_of(cls, reply: str, references: Sequence[str]) -> list[CorpusBleu]:
        """BLEU and the four precisions of one reply."""
        score = _statistics_of.sentence_score(reply, list(references))
        statistics = (score.sys_len, score.ref_len, *score.counts, *score.totals)
        return [cls(statistics, order) for order in (None, *range(1, ORDERS + 1))]

    @property
    def macro_average(self) -> bool:
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


class Gathered(Metric):
    """Keeps what each reply contributes, in order; a subclass's `value()` is computed from `items()`.

    ParlAI adds a metric up reply by reply and may keep any of the sums on the way, so `+` changes neither of its operands. It
    costs no more than what it adds all the same: sums share one list, of which each sees its own beginning.
    """

    __slots__ = ('_shared', '_length')

    def __init__(self, items: Iterable = ()):
        self._shared = list(items)
        self._length = len(self._shared)

    @property
    def macro_average(self) -> bool:
        """Over several tasks, as ParlAI's f1: the mean of the tasks' values, unless `--aggregate-micro true`."""
        return True

    def items(self) -> list:
        return self._shared[: self._length]

    def __add__(self, other: Gathered | None) -> Gathered:
        if other is None:
            return self
        added = other.items()
        total = self._like(self._shared if len(self._shared) == self._length else self.items())
        total._shared += added
        total._length = len(total._shared)
        return total

    def _like(self, shared: list) -> Gathered:
        """A metric of this kind on that very list."""
        like = type(self).__new__(type(self))
        like._shared, like._length = shared, len(shared)
        return like

    def __reduce__(self):
        return type(self), (self.items(),)


class Distinct(Gathered):
    """Distinct n-grams over all n-grams of all replies, 0 to 100; for several n, the mean of their values.

    :param replies: their texts, of which n-grams of words are taken, none across two replies.
    :param orders: which n.
    """

    __slots__ = ('_orders',)

    def __init__(self, replies: Iterable[str], orders: Sequence[int]):
        super().__init__(replies)
        self._orders = tuple(orders)

    def _like(self, shared: list) -> Distinct:
        like = super()._like(shared)
        like._orders = self._orders
        return like

    def value(self) -> float:
        replies = [words(reply) for reply in self.items()]
        return sum(_distinct(list(_ngrams(replies, n))) for n in self._orders) / len(self._orders)

    def __reduce__(self):
        return Distinct, (self.items(), self._orders)


def _ngrams(replies: Iterable[Sequence[str]], n: int) -> Iterator[tuple[str, ...]]:
    return chain.from_iterable(zip(*(reply[i:] for i in range(n))) for reply in replies)


def _distinct(ngrams: Sequence) -> float:
    return 100 * len(set(ngrams)) / len(ngrams) if ngrams else 0.0
