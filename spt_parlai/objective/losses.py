"""The four losses of equations 2–6, per example, in float32 or better.

Symbols: K prompts, B examples, N target tokens of the batch. `example` int64 [N] says whose token each is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_per_example(values: Tensor, example: Tensor, num_examples: int) -> Tensor:
    """Mean over each example's tokens: [..., N] → [..., B]."""
    total = values.new_zeros(*values.shape[:-1], num_examples).index_add(-1, example, values)
    count = torch.bincount(example, minlength=num_examples).to(values)
    return total / count.clamp(min=1)


def prompt_nll(log_probs: Tensor, example: Tensor, num_examples: int) -> Tensor:
    """Eq. 2: log_probs [K, N] → nll [K, B], the mean negative log-likelihood per target token under each prompt."""
    return mean_per_example(-log_probs, example, num_examples)


def gold_distribution(nll: Tensor, tau_gold: float) -> Tensor:
    """Which prompt the LM liked (eq. 3, left): nll [K, B] → softmax over prompts [B, K], without gradient."""
    return torch.softmax(-nll.detach().T / tau_gold, dim=-1)


def noisy_gold(gold: Tensor, noise: Tensor) -> Tensor:
    """A.8: gold [B, K] + noise [B, K], clamped at 0 and renormalised; a row of which nothing is left stays as it was."""
    noisy = (gold + noise).clamp(min=0)
    total = noisy.sum(-1, keepdim=True)
    something = total > torch.finfo(total.dtype).tiny
    return torch.where(something, noisy / torch.where(something, total, 1.0), gold)


def selection_loss(gold: Tensor, scores: Tensor, tau_score: float) -> Tensor:
    """Eq. 3: KL(gold ‖ softmax(scores / τ_s)). gold [B, K], scores [B, K] → [B]."""
    return F.kl_div(torch.log_softmax(scores / tau_score, dim=-1), gold, reduction='none').sum(-1)


def contrastive_loss(scores: Tensor, similar: Tensor, pairs: Tensor) -> Tensor:
    """Eq. 4 for the chosen pairs of the batch: 1 − cos where similar, else max(0, cos).

    scores [B, K]; similar, pairs: bool [B, B]. Returns [B, B], zero where `pairs` is false.
    """
    unit = F.normalize(scores, dim=-1)
    cosine = unit @ unit.T
    return torch.where(similar, 1 - cosine, cosine.clamp(min=0)) * pairs


def unordered_pairs(B: int, apart: Tensor | None = None) -> Tensor:
    """bool [B, B], true above the diagonal; apart: int64 [B], and then only where two examples differ in it."""
    device = None if apart is None else apart.device
    pairs = torch.ones(B, B, dtype=torch.bool, device=device).triu(1)
    return pairs if apart is None else pairs & (apart[:, None] != apart[None])


def fusion_nll(log_probs: Tensor, example: Tensor, num_examples: int) -> Tensor:
    """Eq. 5: −log of the mean of the prompts' probabilities, mean over target tokens. [K, N] → [B]."""
    fused = math.log(len(log_probs)) - torch.logsumexp(log_probs, dim=0)  # [N]
    return mean_per_example(fused, example, num_examples)


@dataclass(frozen=True)
class Losses:
    """The terms of eq. 6 for one batch.

    total: scalar; nll: [K, B]; selection, fusion: [B]; contrastive: [B, B], of which bool `pairs` [B, B] says which count.
    A term that is switched off is None.
    """

    total: Tensor
    nll: Tensor
    selection: Tensor | None
    contrastive: Tensor | None
    pairs: Tensor | None
    fusion: Tensor | None


@dataclass(frozen=True)
class SptObjective:
    """Eq. 6: Σ_i nll + λ1·contrastive + λ2·selection + λ3·fusion; a λ of 0 switches its term off."""

    lambda_selection: float = 1.0
    lambda_contrastive: float = 1.0
    lambda_fusion: float = 1.0
    tau_gold: float = 1.0
    tau_score: float = 1.0
    gold_noise: float = 0.0

    def token_loss(self, log_probs: Tensor, example: Tensor, B: int) -> Tensor:
        """The terms that log-probabilities enter with a gradient, 1 and 4: a sum over examples, so that of any [K, n] of whole
        examples their part of it."""
        loss = prompt_nll(log_probs, example, B).sum() / B
        if self.lambda_fusion:
            loss = loss + self.lambda_fusion * fusion_nll(log_probs, example, B).sum() / B
        return loss

    def __call__(
        self,
        log_probs: Tensor,
        scores: Tensor,
        example: Tensor,
        similar: Tensor | None,
        noise: Tensor | None = None,
        apart: Tensor | None = None,
        token_loss: Tensor | None = None,
    ) -> Losses:
        """log_probs [K, N], scores [B, K], example int64 [N]; similar: bool [B, B], needed for the contrast alone;
        noise: N(0, 1) [B, K], of which `gold_noise` times is added to the gold distribution;
        apart: int64 [B], if the contrast is to take only pairs that differ in it (their dialogue);
        token_loss: scalar, the method's result if it was called before, with its gradient."""
        B = len(scores)
        nll = prompt_nll(log_probs, example, B)
        total = self.token_loss(log_probs, example, B) if token_loss is None else token_loss
        total = total + 0.0 * scores.sum()  # every trainable tensor takes part in every step
        selection = contrastive = pairs = fusion = None
        if self.lambda_selection:
            gold = gold_distribution(nll, self.tau_gold)
            if noise is not None:
                gold = noisy_gold(gold, self.gold_noise * noise)
            selection = selection_loss(gold, scores, self.tau_score)
            total = total + self.lambda_selection * selection.mean()
        if self.lambda_contrastive:
            pairs = unordered_pairs(B, apart).to(scores.device)
            contrastive = contrastive_loss(scores, similar, pairs)
            total = total + self.lambda_contrastive * contrastive.sum() / pairs.sum().clamp(min=1)
        if self.lambda_fusion:
            fusion = fusion_nll(log_probs, example, B)
        return Losses(total, nll, selection, contrastive, pairs, fusion)
