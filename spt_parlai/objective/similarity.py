"""Which contexts are similar: M(c_m, c_n) > Γ of equation 4."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spt_parlai.objective.bleu import pairwise_bleu, sentence_bleu


def similar_pairs(texts: Sequence[str], threshold: float) -> Tensor:
    """bool [B, B], true above the diagonal where BLEU(hypothesis m, reference n > m) exceeds `threshold`."""
    bleu = np.triu(pairwise_bleu(texts), k=1)
    similar = bleu > threshold
    ties = (bleu > 0) & np.isclose(bleu, threshold, rtol=1e-9, atol=0)  # 0 is exact: no word in common
    for m, n in np.argwhere(ties):  # the last digits decide, so they must be sacrebleu's own
        similar[m, n] = sentence_bleu(texts[m], texts[n]) > threshold
    return torch.from_numpy(similar)


def similar_vectors(vectors: Tensor, threshold: float) -> Tensor:
    """bool [B, B], true above the diagonal where the cosine of two texts' vectors exceeds `threshold`.

    vectors: float32 [B, E]; zeros, for a text without words, are similar to nothing.
    """
    unit = F.normalize(vectors.double(), dim=-1)
    return (unit @ unit.T > threshold).triu(1)
