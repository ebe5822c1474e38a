"""Responsibilities against float64 versions with loops."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_parlai.objective import SptObjective
from spt_parlai.objective.assignment import ASSIGNMENTS, balanced, equal_sizes, even_loads, smoothed

quick = settings(max_examples=40, deadline=None)
CLOSE = dict(rtol=1e-9, atol=1e-9)
KINDS = sorted(ASSIGNMENTS)


def softmax(values):
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    return [weight / sum(weights) for weight in weights]


def one_hot(values):
    return [float(k == values.index(max(values))) for k in range(len(values))]


def naive(kind, log_probs, scores, lengths, bias, epsilon, tau_score, tau_gold):
    """[B][K]"""
    K, start, found = len(log_probs), 0, []
    for n, length in enumerate(lengths):
        likelihood = [sum(log_probs[k][start : start + length]) + bias[k] for k in range(K)]
        start += length
        pi = softmax([score / tau_score for score in scores[n]])
        if kind == 'gated':
            parts = one_hot([math.log(p) + b for p, b in zip(pi, bias, strict=True)])
        elif kind == 'mixture':
            parts = softmax([math.log(p) + value for p, value in zip(pi, likelihood, strict=True)])
        elif kind == 'annealed':
            parts = softmax([value / tau_gold for value in likelihood])
        else:
            parts = one_hot(likelihood)
        found.append([(1 - epsilon) * part + epsilon * (1 - part) / (K - 1) for part in parts])
    return found


@st.composite
def batches(draw):
    """(log_probs [K, N], scores [B, K], lengths, bias [K]) in float64."""
    K, lengths = draw(st.integers(2, 5)), draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    log_probs = -5 * torch.rand(K, sum(lengths), generator=generator).double()
    scores, bias = (torch.rand(*shape, generator=generator).double() for shape in ((len(lengths), K), (K,)))
    if draw(st.booleans()):
        scores[:], log_probs[:] = scores[0, 0], log_probs[0]  # equal: the first wins
        bias[:] = 0
    return log_probs, scores, lengths, bias


@pytest.mark.parametrize('kind', KINDS)
@quick
@given(batches(), st.sampled_from([0.0, 0.05, 0.5]), st.sampled_from([0.1, 1.0]), st.sampled_from([1.0, 4.0]))
def test_responsibilities_and_loss(kind, batch, epsilon, tau_score, tau_gold):
    log_probs, scores, lengths, bias = batch
    example = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    log_probs.requires_grad_()
    objective = SptObjective(1.0, 0.0, 1.0, tau_gold, tau_score, prompt_assignment=kind, assignment_epsilon=epsilon)
    found = objective.responsibilities(log_probs, scores, example, bias)
    expected = naive(kind, log_probs.tolist(), scores.tolist(), lengths, bias.tolist(), epsilon, tau_score, tau_gold)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), **CLOSE)
    torch.testing.assert_close(found.sum(1), torch.ones(len(lengths)).double(), **CLOSE)

    losses = objective(log_probs, scores, example, None, bias=bias)
    nll = torch.stack([-part.mean(1) for part in log_probs.split(lengths, 1)], 1)  # [K, B]
    unbiased = [0.0] * len(bias) if kind == 'mixture' else bias.tolist()
    gold = naive(kind, log_probs.tolist(), scores.tolist(), lengths, unbiased, epsilon, tau_score, tau_gold)
    divergence = [
        sum(r * (math.log(r) - math.log(p)) for r, p in zip(row, softmax(score), strict=True) if r > 0)
        for row, score in zip(gold, (scores / tau_score).tolist(), strict=True)
    ]
    weighted = (torch.tensor(expected, dtype=torch.float64).T * nll).sum(0).mean()
    assert losses.terms.keys() == {'selection'}  # the fusion trains every prompt on every reply: it is off
    torch.testing.assert_close(losses.terms['selection'].values, torch.tensor(divergence, dtype=torch.float64), **CLOSE)
    torch.testing.assert_close(losses.total, weighted + sum(divergence) / len(lengths), **CLOSE)
    gradients = torch.autograd.grad(losses.total, log_probs), torch.autograd.grad(weighted, log_probs)
    torch.testing.assert_close(*gradients, **CLOSE)  # none goes through the weights


def test_every_prompt_learns_every_reply_without_an_assignment():
    scores = torch.rand(3, 2)
    assert SptObjective().responsibilities(torch.rand(2, 4), scores, torch.tensor([0, 0, 1, 2])).eq(1).all()


def test_a_prompt_that_wins_too_often_is_handicapped():
    bias = balanced(torch.tensor([0.0, 0.5, 0.0]), torch.tensor([6, 2, 0]), 0.3)
    torch.testing.assert_close(bias, torch.tensor([-0.3 * (3 / 4 - 1 / 3), 0.5 - 0.3 * (1 / 4 - 1 / 3), 0.1]))


@pytest.mark.parametrize('spread', [0.01, 1.0])
def test_even_loads_of_contexts_that_all_prefer_one_prompt(spread):
    torch.manual_seed(0)
    log_prior = torch.log_softmax(spread * torch.randn(40, 3) + torch.tensor([0.0, 9.0, 4.0]), dim=-1)
    bias = even_loads(log_prior)
    naive = [0.0] * 3
    for _ in range(100):
        shares = [softmax([v + b for v, b in zip(row, naive, strict=True)]) for row in log_prior.double().tolist()]
        naive = [b - math.log(3 * sum(share[k] for share in shares) / 40) for k, b in enumerate(naive)]
        naive = [b - sum(naive) / 3 for b in naive]
    torch.testing.assert_close(bias.double(), torch.tensor(naive, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.softmax(log_prior + bias, -1).mean(0), torch.full((3,), 1 / 3), atol=1e-4, rtol=0)
    assert log_prior.argmax(1).eq(1).all() and (log_prior + bias).argmax(1).bincount().min() >= 8


@pytest.mark.parametrize('K, B', [(2, 4), (3, 6), (3, 5), (4, 3), (2, 1)])
def test_equal_sizes_are_the_likeliest_of_all_assignments(K, B):
    torch.manual_seed(K + B)
    likelihood = torch.randn(B, K) + torch.arange(K)  # the last prompt is the best for most
    bias = equal_sizes(likelihood)
    chosen = (likelihood + bias).argmax(1)
    assert bias[torch.arange(B), chosen].eq(0).all() and bias.isinf().sum() == B * (K - 1)
    allowed = [a for a in itertools.product(range(K), repeat=B) if max(map(a.count, range(K))) <= math.ceil(B / K)]
    best = max(sum(float(likelihood[n, k]) for n, k in enumerate(a)) for a in allowed)
    assert float(likelihood[torch.arange(B), chosen].sum()) == pytest.approx(best)


def test_smoothing_leaves_every_prompt_a_share():
    found = smoothed(torch.tensor([[0.0, 1.0, 0.0]]), 0.06)
    torch.testing.assert_close(found, torch.tensor([[0.03, 0.94, 0.03]]))
