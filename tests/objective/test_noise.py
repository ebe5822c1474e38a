"""The noisy gold distribution of stability experiment A.8."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_parlai.objective import SptObjective
from spt_parlai.objective.losses import gold_distribution, noisy_gold, prompt_nll, selection_loss
from spt_parlai.training.seeding import noise_generator


def naive(gold, noise):
    """Row by row: add, clamp at 0, divide by the sum; a row whose sum is 0 stays as it was."""
    rows = []
    for g, e in zip(gold.tolist(), noise.tolist(), strict=True):
        row = [max(0.0, a + b) for a, b in zip(g, e, strict=True)]
        rows.append([v / math.fsum(row) for v in row] if math.fsum(row) > 0 else g)
    return torch.tensor(rows, dtype=torch.float64)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.sampled_from([0.0, 0.001, 0.1, 1.0, 100.0]), st.integers(0, 10_000))
def test_noisy_gold(K, B, strength, seed):
    generator = torch.Generator().manual_seed(seed)
    gold = torch.softmax(torch.randn(B, K, generator=generator).double() * 3, -1)
    noise = strength * torch.randn(B, K, generator=generator).double()
    noisy = noisy_gold(gold, noise)
    torch.testing.assert_close(noisy, naive(gold, noise), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(noisy.sum(1), torch.ones(B).double())
    assert (noisy >= 0).all()
    if strength == 0:
        torch.testing.assert_close(noisy, gold)


@pytest.mark.parametrize('noise', [-5.0, -1.0, -1e30])
def test_a_row_of_which_nothing_is_left_stays(noise):
    gold = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    noisy = noisy_gold(gold, torch.tensor([[noise, noise], [0.5, 0.0]]))
    torch.testing.assert_close(noisy, torch.tensor([[0.25, 0.75], [2 / 3, 1 / 3]]))


def test_the_objective_adds_it_to_the_gold_distribution_alone():
    torch.manual_seed(0)
    log_probs, scores, noise = -torch.rand(3, 5).double(), torch.rand(2, 3).double(), torch.randn(2, 3).double()
    example, similar = torch.tensor([0, 0, 1, 1, 1]), torch.zeros(2, 2, dtype=torch.bool)
    objective = SptObjective(gold_noise=0.3)
    clean, noisy = objective(log_probs, scores, example, similar), objective(log_probs, scores, example, similar, noise)
    gold = noisy_gold(gold_distribution(prompt_nll(log_probs, example, 2), 1.0), 0.3 * noise)
    torch.testing.assert_close(noisy.terms['selection'].values, selection_loss(gold, scores, 1.0))
    assert not torch.allclose(noisy.terms['selection'].values, clean.terms['selection'].values)
    assert torch.equal(noisy.nll, clean.nll) and noisy.terms.keys() == clean.terms.keys()
    for term in noisy.terms.keys() - {'selection'}:
        assert torch.equal(noisy.terms[term].values, clean.terms[term].values)


def test_noise_is_a_function_of_seed_process_and_batch():
    def drawn(*key):
        return tuple(torch.randn(4, generator=noise_generator(*key)).tolist())

    assert drawn(1, 0, 5) == drawn(1, 0, 5)
    assert len({drawn(s, r, b) for s in (0, 1) for r in (0, 1) for b in range(4)}) == 16
