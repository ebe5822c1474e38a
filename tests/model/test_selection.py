"""Which prompt is selected, under the options that change it."""

from __future__ import annotations

import pytest
import torch
from helpers.families import build, draw, pad, tiny_lm

CONTEXTS, TARGETS = draw([7, 3, 11, 5, 6, 4], seed=1), draw([3, 1, 5, 2, 1, 4], seed=2)


@pytest.fixture
def model():
    return build(tiny_lm('llama'))[0].eval()


@pytest.mark.parametrize('k', range(3))
@torch.no_grad()
def test_a_forced_prompt_is_selected_everywhere(model, k):
    free = model(pad(CONTEXTS), pad(TARGETS))
    model.force_prompt = k
    forced = model(pad(CONTEXTS), pad(TARGETS))
    assert forced.selected.tolist() == [k] * 6 == model.encoder(pad(CONTEXTS)).selected.tolist()
    assert model.retrieve(pad(CONTEXTS)).selected.tolist() == [k] * 6
    assert torch.equal(forced.scores, free.scores) and torch.equal(forced.log_probs, free.log_probs)


@torch.no_grad()
def test_score_noise_moves_the_selection_in_evaluation_alone(model):
    scores = torch.tensor([[0.50, 0.52, 0.1]]).expand(4000, 3)
    model.score_noise = 0.1
    shares = model.select(scores).bincount(minlength=3) / 4000
    # P(e1 - e0 > -0.02 / 0.1), e1 - e0 ~ N(0, 2): Φ(0.2 / √2) = 0.556; the third is 4 standard deviations away
    assert float(shares[1]) == pytest.approx(0.556, abs=0.03) and float(shares[2]) < 0.01
    model.train()
    assert model.select(scores).tolist() == [1] * 4000


@torch.no_grad()
def test_a_selection_that_was_made_is_kept(model):
    model.score_noise = 10.0
    selection = model.retrieve(pad(CONTEXTS))
    for _ in range(5):
        for kept in (
            model(pad(CONTEXTS), pad(TARGETS), selection=selection),
            model.encoder(pad(CONTEXTS), selection=selection),
        ):
            assert torch.equal(kept.selected, selection.selected) and torch.equal(kept.scores, selection.scores)
    draws = {tuple(model.retrieve(pad(CONTEXTS)).selected.tolist()) for _ in range(20)}
    assert len(draws) > 1


@torch.no_grad()
@pytest.mark.parametrize('beta', [1.0, 10.0, 40.0])
def test_activation_beta(model, beta):
    """softplus_β(x) = log(1 + e^{βx}) / β, and x itself above βx > 1."""
    model.retriever.activation_beta = 1e-9 + beta
    words, mask = model._embed_contexts(pad(CONTEXTS))
    means = torch.stack([w[m].mean(0) for w, m in zip(words, mask, strict=True)])
    v_context = model.retriever.lin_context(means).double()
    v_prompt = model.retriever.lin_prompt(model.soft_prompts.tokens.mean(1)).double()
    cosine = torch.nn.functional.cosine_similarity(v_context[:, None], v_prompt[None], dim=-1)
    expected = torch.where(beta * cosine > 1, cosine, torch.log1p(torch.exp(beta * cosine)) / beta)
    torch.testing.assert_close(model.retrieve(pad(CONTEXTS)).scores.double(), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_with_a_selection_nothing_is_scored_again(model, monkeypatch):
    selection = model.retrieve(pad(CONTEXTS))
    monkeypatch.setattr(model.retriever, 'forward', lambda *_: pytest.fail('contexts are scored again'))
    model(pad(CONTEXTS), pad(TARGETS), selection=selection)
    model.encoder(pad(CONTEXTS), pad(TARGETS), selection)
