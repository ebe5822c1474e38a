"""Equation 1 and the choice of equation 7."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_parlai.model.retriever import Retriever, context_mean, select


def naive_score(retriever, words, prompt):
    """softplus(cos(lin_C(mean emb_C), lin_sp(mean sp_i))) in float64, for one context [T, D] and one prompt [L, D]."""

    def projected(tokens, linear):
        mean = [sum(column) / len(tokens) for column in zip(*tokens.tolist(), strict=True)]
        return [
            sum(w * x for w, x in zip(row, mean, strict=True)) + b
            for row, b in zip(linear.weight.tolist(), linear.bias.tolist(), strict=True)
        ]

    u, v = projected(words, retriever.lin_context), projected(prompt, retriever.lin_prompt)
    raw = (
        sum(a * b for a, b in zip(u, v, strict=True))
        / math.sqrt(sum(a * a for a in u))
        / math.sqrt(sum(b * b for b in v))
    )
    return raw if 10 * raw > 1 else math.log1p(math.exp(10 * raw)) / 10


@pytest.mark.parametrize('K, L, B, D', [(1, 1, 1, 4), (4, 8, 3, 8), (3, 2, 5, 16)])
def test_scores(K, L, B, D):
    torch.manual_seed(K)
    retriever = Retriever(D)
    prompts, words = torch.randn(K, L, D), torch.randn(B, 6, D)
    lengths = [1 + n % 6 for n in range(B)]
    mask = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    scores = retriever(context_mean(words, mask), prompts)
    expected = [[naive_score(retriever, words[n, : lengths[n]], prompts[k]) for k in range(K)] for n in range(B)]
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('cosine', [-1.0, -0.5, 0.0, 0.05, 0.0999, 0.1001, 0.2, 0.5, 1.0])
def test_softplus(cosine):
    """Linear above 10·x > 1, and in [0, 1] for every cosine."""
    retriever = Retriever(2)
    with torch.no_grad():
        for linear in (retriever.lin_context, retriever.lin_prompt):
            linear.weight.copy_(torch.eye(2))
            linear.bias.zero_()
    direction = torch.tensor([[cosine, math.sqrt(1 - cosine * cosine)]])
    score = retriever(direction, torch.tensor([[[3.0, 0.0]]])).item()
    expected = cosine if 10 * cosine > 1 else math.log1p(math.exp(10 * cosine)) / 10
    assert score == pytest.approx(expected, abs=1e-6)
    assert 0 <= score <= 1 + 1e-6


def test_scores_stay_between_0_and_1():
    torch.manual_seed(0)
    scores = Retriever(3)(torch.randn(200, 3) * 5, torch.randn(6, 2, 3))
    assert scores.min() >= 0 and scores.max() <= 1 + 1e-6
    assert scores.min() < 0.01 and scores.max() > 0.95  # the whole range is used


def test_context_mean_ignores_what_the_mask_hides():
    words = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [1e30, -1e30]], [[5.0, 6.0], [1e30, 1e30], [1e30, 1e30]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert context_mean(words, mask).tolist() == [[2.0, 3.0], [5.0, 6.0]]
    assert context_mean(words.bfloat16(), mask).dtype == torch.float32


def test_context_mean_sums_in_float32():
    torch.manual_seed(0)
    words = torch.rand(2, 1000, 8).bfloat16()
    mean = context_mean(words, torch.ones(2, 1000, dtype=torch.bool))
    torch.testing.assert_close(mean.double(), words.double().mean(1), rtol=1e-5, atol=0)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 6).flatmap(
        lambda K: st.lists(st.lists(st.sampled_from([0.0, 0.3, 0.9]), min_size=K, max_size=K), min_size=1)
    )
)
def test_of_equal_scores_the_lowest_index_is_selected(scores):
    assert select(torch.tensor(scores)).tolist() == [row.index(max(row)) for row in scores]
