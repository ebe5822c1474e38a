"""Perplexities that compare models with different tokenizers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from parlai.core.metrics import AverageMetric, Metric

from spt_parlai.metrics.reply import words


class Perplexity(AverageMetric):
    """exp(NLL / units) of all targets together.

    :param numer: NLL of the target's tokens, its end-of-sequence token included, in nats.
    :param denom: units of the target's text, which has no end.
    """

    def value(self) -> float:
        mean = super().value()
        return (
            math.exp(mean) if mean < 709 else math.inf
        )  # beyond that a float overflows: text in one long word does it


def perplexities(nll: float, target: str) -> Iterator[tuple[str, Metric]]:
    """ppl_word: per word; ppl_byte: per byte of the text in UTF-8."""
    yield 'ppl_word', Perplexity(nll, len(words(target)))
    yield 'ppl_byte', Perplexity(nll, len(target.encode('utf-8', 'surrogatepass')))


def nll_of(metrics: dict[str, Metric], labels: Sequence[str]) -> float | None:
    """A reply's target NLL as any of ParlAI's generators reports it; None where it is not that of the one label's whole text."""
    loss, cut = metrics.get('loss'), metrics.get('ltrunc')
    if not isinstance(loss, AverageMetric) or len(labels) != 1 or (cut is not None and cut.value() > 0):
        return None
    return loss._numer
