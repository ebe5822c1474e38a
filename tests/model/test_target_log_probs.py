"""Log-probabilities of target tokens in chunks: values and gradients as from all logits at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.families import FAMILIES, build, draw, pad, tiny_lm
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_parlai.model import target_log_probs
from spt_parlai.model.target_log_probs import token_log_probs


@pytest.fixture(params=[1, 100, 2**20], ids='chunks of {} bytes'.format)
def chunked(request, monkeypatch):
    monkeypatch.setattr(target_log_probs, 'LOGIT_BYTES', request.param)


def drawn(N, D, V, with_bias, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((N, D), (V, D), (V,)))
    targets = torch.randint(V, (N,), generator=generator)
    return (
        hidden.requires_grad_(),
        weight,
        bias if with_bias else None,
        targets,
        torch.rand(N, generator=generator) < 0.5,
    )


def naive(hidden, weight, bias, targets, wanted):
    """float64, all logits at once."""
    logits = F.linear(hidden.double(), weight.double(), None if bias is None else bias.double())
    likeliest = torch.where(wanted, logits.argmax(-1), torch.zeros_like(targets))
    return torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0], likeliest


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(2, 20), st.booleans(), st.integers(0, 10_000))
def test_values_and_gradients(N, D, V, with_bias, seed):
    inputs = drawn(N, D, V, with_bias, seed)
    upstream = torch.linspace(-1, 2, N)
    log_probs, likeliest = token_log_probs(*inputs)
    expected, expected_likeliest = naive(*inputs)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(likeliest, expected_likeliest)
    (gradient,) = torch.autograd.grad(log_probs, inputs[0], upstream)
    (expected,) = torch.autograd.grad(expected, inputs[0], upstream.double())
    torch.testing.assert_close(gradient, expected.float(), rtol=1e-5, atol=1e-5)


def test_chunks(chunked):
    inputs = drawn(37, 6, 11, True, 1)
    log_probs, likeliest = token_log_probs(*inputs)
    torch.testing.assert_close(log_probs.double(), naive(*inputs)[0], rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(log_probs.square().sum(), inputs[0])
    (expected,) = torch.autograd.grad(naive(*inputs)[0].square().sum(), inputs[0])
    torch.testing.assert_close(gradient, expected.float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(likeliest, naive(*inputs)[1])


def test_extreme_logits_stay_finite():
    hidden = torch.tensor([[1e4, 0.0], [-1e4, 0.0], [0.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    log_probs, _ = token_log_probs(hidden, weight, None, torch.tensor([1, 0, 2]), torch.ones(3, dtype=torch.bool))
    assert log_probs[:2].tolist() == [-2e4, -2e4]
    log_probs.sum().backward()
    torch.testing.assert_close(hidden.grad[:2], torch.tensor([[-2.0, 0.0], [2.0, 0.0]]))
    assert torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize('dtype, tolerance', [(torch.bfloat16, 0.02), (torch.float16, 0.003)], ids=str)
def test_half_precision(dtype, tolerance):
    """The projection in half precision, log-softmax in float32: as autograd does it through all logits."""
    inputs = drawn(20, 32, 50, False, 2, dtype)
    log_probs, _ = token_log_probs(*inputs)
    logits = F.linear(inputs[0], inputs[1]).float()
    expected = -F.cross_entropy(logits, inputs[3], reduction='none')
    torch.testing.assert_close(log_probs, expected, rtol=1e-5, atol=1e-5)
    (gradient,), (wanted,) = (torch.autograd.grad(value.sum(), inputs[0]) for value in (log_probs, expected))
    assert gradient.dtype == dtype
    torch.testing.assert_close(
        gradient.float(), wanted.float(), rtol=tolerance, atol=tolerance * float(wanted.abs().max())
    )


def test_nothing_is_kept_where_no_gradient_is_wanted():
    inputs = drawn(5, 4, 9, False, 3)
    with torch.no_grad():
        log_probs, _ = token_log_probs(*inputs)
    assert not log_probs.requires_grad


def test_logits_that_are_capped_or_scaled_take_the_long_way():
    """Gemma 2 caps its logits after the projection; the others do not."""
    linear = {family: build(tiny_lm(family))[0].llm.head_is_linear for family in FAMILIES}
    assert not linear['gemma2'] and linear['opt'] and linear['opt-350m'] and linear['llama'] and linear['gpt2']


@pytest.mark.parametrize('family', ['opt', 'opt-350m', 'llama', 'gpt2', 'bloom', 'falcon'])
def test_the_models_two_ways_agree(family, chunked):
    model = build(tiny_lm(family))[0]
    contexts, targets = pad(draw([7, 3, 11], seed=1)), pad(draw([3, 1, 5], seed=2))

    def outcome():
        model.zero_grad()
        prediction = model(contexts, targets)
        prediction.log_probs.square().sum().backward()
        return prediction, model.soft_prompts.tokens.grad

    (fast, gradient) = outcome()
    assert model.llm.head_is_linear
    model.llm.head_is_linear = False
    (slow, expected) = outcome()
    torch.testing.assert_close(fast.log_probs, slow.log_probs, rtol=1e-5, atol=1e-6)
    assert torch.equal(fast.greedy, slow.greedy)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.skipif(not hasattr(F, 'linear_cross_entropy'), reason='torch before 2.13')
def test_torchs_own_function_agrees():
    hidden, weight, targets = torch.randn(9, 8), torch.randn(50, 8), torch.randint(50, (9,))
    found, _ = token_log_probs(hidden, weight, None, targets, torch.zeros(9, dtype=torch.bool))
    torch.testing.assert_close(
        found, -F.linear_cross_entropy(hidden, weight, targets, reduction='none'), rtol=1e-5, atol=1e-5
    )
