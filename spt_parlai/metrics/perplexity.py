"""Perplexities per word and per byte, which compare models with different tokenizers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from parlai.core.metrics import AverageMetric, Metric

from spt_parlai.metrics.reply import words


class Perplexity(AverageMetric):
    """exp(NLL / units) of all targets together.

    :param numer: NLL of the target's tokens in nats, the end-of-sequence token included.
    :param denom: units of the target's text, in which the end does not count.
    """

    def value(self) -> float:
        mean = super().value()
        return math.exp(mean) if mean < 709 else math.inf  # a float overflows beyond, as a text of one long word shows


def perplexities(nll: float, target: str) -> Iterator[tuple[str, Metric]]:
    """Name and metric of one target: `ppl_word` per word, `ppl_byte` per byte of the text in UTF-8."""
    yield 'ppl_word', Perplexity(nll, len(words(target)))
    yield 'ppl_byte', Perplexity(nll, len(target.encode('utf-8', 'surrogatepass')))


def nll_of(metrics: Mapping[str, Metric], labels: Sequence[str]) -> float | None:
    """The NLL of the target in nats, from the `loss` that any of ParlAI's generators reports.

    None if there are several labels, or if the label was cut: the loss is then not that of the whole text.
    """
    loss, cut = metrics.get('loss'), metrics.get('ltrunc')
    if not isinstance(loss, AverageMetric) or len(labels) != 1 or (cut is not None and cut.value() > 0):
        return None
    return loss._numer
