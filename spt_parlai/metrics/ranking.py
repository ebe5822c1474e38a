"""Scores by which one of several replies to a context is chosen; the highest is the best."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from spt_parlai.metrics.reply import content_words, unigram_f1


def mixture_likelihood(log_probs: Tensor, log_weights: Tensor, lengths: Tensor) -> Tensor:
    """log Σ_k π_k p_k(y | c) of whole replies, in nats per token: float64 [C].

    :param log_probs: log p_k(y | c), summed over the tokens of each reply, [K, C].
    :param log_weights: log π_k, [K].
    :param lengths: number of tokens of each reply, [C].
    """
    return (log_probs.double() + log_weights.double()[:, None]).logsumexp(0) / lengths.double()


def consensus(replies: Sequence[str]) -> list[float]:
    """Mean unigram F1 of each reply with all others, which makes it the one of least expected risk; 0 for one reply."""
    others = max(len(replies) - 1, 1)
    return [
        sum(unigram_f1(reply, (other,)) for j, other in enumerate(replies) if j != i) / others
        for i, reply in enumerate(replies)
    ]


def persona_overlap(reply: str, persona: str) -> float:
    """Share of the reply's different content words that the persona contains; 0 without content words."""
    said = content_words(reply)
    return len(said & content_words(persona)) / len(said) if said else 0.0
