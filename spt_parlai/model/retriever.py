"""The dense retriever of equation 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATION_BETA = 10.0  # keeps scores in [0, 1] as the paper claims; plain softplus (1) does not


class Retriever(nn.Module):
    """Scores every soft prompt for every context.

    v_C = lin_C(mean of the context's word embeddings), v_i = lin_sp(mean of prompt i's tokens); a linear layer
    commutes with the mean, so the mean comes first. Score = softplus_β(cosine(v_C, v_i)), linear above β·x > 1.
    """

    def __init__(self, hidden_size: int, activation_beta: float = ACTIVATION_BETA):
        super().__init__()
        self.activation_beta = activation_beta
        self.lin_context = nn.Linear(hidden_size, hidden_size)
        self.lin_prompt = nn.Linear(hidden_size, hidden_size)

    def forward(self, context_mean: Tensor, soft_prompts: Tensor) -> Tensor:
        """context_mean: float32 [B, D]; soft_prompts: float32 [K, L, D] → scores float32 [B, K]."""
        v_context = self.lin_context(context_mean)  # [B, D]
        v_prompt = self.lin_prompt(soft_prompts.mean(1))  # [K, D]
        raw = F.cosine_similarity(v_context[:, None], v_prompt[None], dim=-1)  # [B, K]
        return F.softplus(raw, beta=self.activation_beta, threshold=1.0)


def context_mean(embeddings: Tensor, mask: Tensor) -> Tensor:
    """Means over the contexts' real tokens only. embeddings [B, T, D], mask bool [B, T] → float32 [B, D]."""
    weights = mask.float()
    total = torch.einsum('btd,bt->bd', embeddings.float(), weights)
    return total / weights.sum(1, keepdim=True).clamp(min=1)


def prefix_means(embeddings: Tensor, row: Tensor, length: Tensor) -> Tensor:
    """Means over the first tokens of rows. embeddings [R, M, D]; row, length int64 [B] → float32 [B, D].

    For every b the mean of embeddings[row[b], :length[b]]; one cumulative sum serves all of them.
    """
    total = embeddings.float().cumsum(1)[row, length - 1]
    return total / length[:, None]


def select(scores: Tensor) -> Tensor:
    """i* of equation 7. scores [B, K] → int64 [B]; among equal scores the lowest index wins."""
    best = scores == scores.max(dim=1, keepdim=True).values
    return best.int().argmax(dim=1)
