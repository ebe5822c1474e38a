"""Which prompt learns from which reply (`--prompt-assignment`).

In the paper every prompt trains on every reply, so all prompts become alike and there is little to select. An
assignment gives each reply responsibilities instead: weights [B, K] that sum to 1 over the prompts. They weight the
prompts' NLLs, and are what the retriever learns to predict. They are constants in the loss: no gradient goes through
them.

log_likelihood: [B, K], log p_k(reply n given its context), the *sum* over the reply's tokens. (A mean over tokens
differs so little between prompts that the weights would be almost equal.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Assigned:
    """What an assignment may look at.

    log_likelihood: [B, K]; log_prior: [B, K], log π, the log-softmax of the retriever's scores, plus a bias that
    balances the prompts (`even_loads`); tau: temperature of the annealed posterior.
    """

    log_likelihood: Tensor
    log_prior: Tensor
    tau: float = 1.0


def gated(inputs: Assigned) -> Tensor:
    """1 for the prompt of the highest log π + b, which the retriever is to select (the first of equal ones): [B, K]."""
    return _one_hot(inputs.log_prior)


def mixture(inputs: Assigned) -> Tensor:
    """The posterior of a mixture of prompts whose weights the retriever gives: ∝ π_k · e^b_k · p_k(reply), [B, K]."""
    return torch.softmax(inputs.log_prior + inputs.log_likelihood, dim=-1)


def winner(inputs: Assigned) -> Tensor:
    """1 for the prompt under which the reply is likeliest (winner takes all): [B, K]."""
    return _one_hot(inputs.log_likelihood)


def annealed(inputs: Assigned) -> Tensor:
    """∝ p_k(reply)^(1/τ), [B, K]: alike for a large τ, the winner's for a small one (deterministic annealing)."""
    return torch.softmax(inputs.log_likelihood / inputs.tau, dim=-1)


ASSIGNMENTS: dict[str, Callable[[Assigned], Tensor]] = {
    'gated': gated,
    'mixture': mixture,
    'wta': winner,
    'annealed': annealed,
    'equal': winner,  # of the likelihoods to which `equal_sizes` has added its bias
}
BY_CONTEXT = ('gated', 'mixture')  # look at what the retriever will select; the others look at the reply alone


def smoothed(responsibilities: Tensor, epsilon: float) -> Tensor:
    """Give a share ε of every prompt's weight to the K − 1 others, in equal parts. [B, K] → [B, K], rows sum to 1.

    A weight of 1 becomes 1 − ε and a weight of 0 becomes ε/(K − 1): no prompt stops learning.
    """
    K = responsibilities.shape[-1]
    return (1 - epsilon) * responsibilities + epsilon * (1 - responsibilities) / (K - 1)


def balanced(bias: Tensor, load: Tensor, rate: float) -> Tensor:
    """b_k ← b_k − γ (load_k − 1/K), in nats: what a prompt's log-likelihoods are given before winners are chosen.

    A prompt that wins too often is handicapped until the others win as often. bias: [K]; load: [K], how many replies
    each prompt has won; rate: γ.
    """
    return bias - rate * (load / load.sum() - 1 / len(load))


def even_loads(log_weights: Tensor, rounds: int = 100) -> Tensor:
    """The bias b with which the prompts get equal shares of some replies: mean of softmax(w + b) = 1/K for each k.

    What all contexts have in common moves log π most, so without b one prompt would be selected for every context, be
    the only one that learns, and stay. b takes the common part away: what is left is how contexts differ.
    log_weights: [Q, K], w of Q replies, which is log π, plus log p_k(reply) where that counts. Returns float32 [K] with
    mean 0, found by Sinkhorn's fixed-point steps; zeros if Q is 0.
    """
    Q, K = log_weights.shape
    log_weights, bias = log_weights.double(), log_weights.new_zeros(K, dtype=torch.float64)
    for _ in range(rounds if Q else 0):
        bias = bias - torch.logsumexp(torch.log_softmax(log_weights + bias, dim=-1), dim=0)
        bias = bias - bias.mean()
    return bias.float()


def equal_sizes(log_likelihood: Tensor) -> Tensor:
    """Assign B replies to K prompts so that none gets more than ⌈B/K⌉ and the total log-likelihood is highest.

    The equal-size assignment of EqHard-EM (arXiv 2209.14627). log_likelihood: [B, K]. Returns a bias [B, K] to add to
    the log-likelihoods: 0 for a reply's prompt, −∞ for all others.
    """
    from scipy.optimize import linear_sum_assignment

    B, K = log_likelihood.shape
    places = -(-B // K)  # of each prompt
    cost = -log_likelihood.double().cpu().numpy()
    _, place = linear_sum_assignment(np.repeat(cost, places, axis=1))
    assigned = F.one_hot(torch.as_tensor(place // places), K).bool().to(log_likelihood.device)
    return torch.zeros_like(log_likelihood).masked_fill(~assigned, -torch.inf)


def _one_hot(values: Tensor) -> Tensor:
    """1 at the highest value of each row, the first of equal ones: [B, K] → [B, K]."""
    best = (values == values.amax(-1, keepdim=True)).int().argmax(-1)
    return F.one_hot(best, values.shape[-1]).to(values.dtype)
