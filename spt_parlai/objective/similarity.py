"""M(c_m, c_n) of equation 4: how alike two contexts' texts are."""

from __future__ import annotations

from functools import lru_cache
from typing import Sequence

import torch
from sacrebleu.metrics import BLEU
from torch import Tensor

_bleu = BLEU(tokenize='13a', effective_order=True)


@lru_cache(maxsize=100_000)
def sentence_bleu(hypothesis: str, reference: str) -> float:
    """Sentence BLEU on the 0–100 scale: 13a tokens, effective order, sacrebleu's default smoothing."""
    return _bleu.sentence_score(hypothesis, [reference]).score


def similar_pairs(texts: Sequence[str], threshold: float) -> Tensor:
    """bool [B, B], true above the diagonal where BLEU(hypothesis m, reference n > m) exceeds `threshold`."""
    B = len(texts)
    similar = torch.zeros(B, B, dtype=torch.bool)
    for m in range(B):
        for n in range(m + 1, B):
            similar[m, n] = sentence_bleu(texts[m], texts[n]) > threshold
    return similar
