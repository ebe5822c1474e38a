"""ROUGE-1, -2 and -L as rouge-score computes them, without stemming."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

NAMES = ('rouge1', 'rouge2', 'rougeL')


@lru_cache(maxsize=1)
def _scorer():
    from rouge_score.rouge_scorer import RougeScorer  # half a second, which only an evaluation with replies needs

    return RougeScorer(list(NAMES), use_stemmer=False)


def rouge(reply: str, references: Sequence[str]) -> dict[str, float]:
    """name → F-measure against the reference that it is highest for, 0 to 1."""
    return {name: score.fmeasure for name, score in _scorer().score_multi(references, reply).items()}
