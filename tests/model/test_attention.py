"""Attention by products equals transformers' own and a naive one, and is what decoding and training use."""

import pytest
import torch
import torch.nn.functional as F
from helpers.families import build, draw, pad, tiny_lm
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from spt_parlai.model import attention
from spt_parlai.model.attention import CausalAttention, attend_by_products

H, G, T, D = 6, 2, 11, 8


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('masked', [True, False])
@pytest.mark.parametrize('S', [1, 3])
def test_equals_transformers_own(dtype, masked, S):
    attend_by_products()
    g = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(4, n, t, D, generator=g).to(dtype) for n, t in ((H, S), (G, T), (G, T)))
    mask = (torch.rand(4, 1, S, T, generator=g) < 0.7) | (torch.arange(T) == 0) if masked else None
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = H // G, True
    given = {'scaling': 0.3, 'dropout': 0.0}
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, **given)
    found, _ = AttentionInterface()['sdpa'](module, query, key, value, mask, **given)
    assert found.shape == expected.shape == (4, S, H, D)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_decoding_reads_a_groups_keys_once(monkeypatch):
    model, _ = build(tiny_lm('llama'))  # four heads in two groups
    shapes, attend = [], F.scaled_dot_product_attention

    def seen(query, *rest, **named):
        shapes.append(query.shape)
        return attend(query, *rest, **named)

    monkeypatch.setattr(F, 'scaled_dot_product_attention', seen)
    with torch.no_grad():
        encoded = model.encoder(pad(draw([5, 5])))
        shapes.clear()
        mask = encoded.extended(torch.ones(2, 1, dtype=torch.bool)).mask
        model.llm.decode(torch.tensor([[3], [4]]), mask, encoded.cache)
    assert {shape[:3] for shape in shapes} == {(2, 2, 2)}


def naive_gradients(query, key, value, upstream, scale):
    """Those of causal attention with its keys repeated for every head, in float64."""
    inputs = [x.double().requires_grad_() for x in (query, key, value)]
    q, k, v = inputs[0], *(x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in inputs[1:])
    hidden = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    p = (scale * q @ k.transpose(2, 3)).masked_fill(hidden, float('-inf')).softmax(-1)
    return torch.autograd.grad(p @ v, inputs, upstream.double())


@pytest.mark.parametrize('heads', [(6, 2), (3, 3), (4, 1)])
@pytest.mark.parametrize(('length', 'width', 'scale'), [(11, 8, 0.3), (150, 16, 0.25), (269, 24, 24**-0.5)])
@pytest.mark.parametrize('spread', [1, 6])
def test_gradients_are_those_of_naive_attention(heads, length, width, scale, spread):
    g = torch.Generator().manual_seed(0)
    H, G = heads
    query, key, value, upstream = (
        (torch.randn(2, n, length, width, generator=g) * by).bfloat16()
        for n, by in ((H, spread), (G, 1), (G, 1), (H, 1))
    )
    inputs = [x.requires_grad_() for x in (query, key, value)]
    output = CausalAttention.apply(*inputs, scale)
    plain = F.scaled_dot_product_attention(*inputs, is_causal=True, scale=scale, enable_gqa=H != G)
    torch.testing.assert_close(output, plain, rtol=0, atol=0)
    expected = naive_gradients(*(x.detach() for x in inputs), upstream, scale)
    found, of_torch = (torch.autograd.grad(o, inputs, upstream) for o in (output, plain))
    assert {gradient.dtype for gradient in found} == {torch.bfloat16}
    errors, of_torchs = (
        torch.stack([(x.double() - truth).norm() / truth.norm() for x, truth in zip(gradients, expected, strict=True)])
        for gradients in (found, of_torch)
    )
    assert (errors < 2**-7).all()  # bfloat16 rounds to 2⁻⁹
    assert errors.norm() < 2 * of_torchs.norm()


def test_training_in_bfloat16_takes_it_and_nothing_else_does(monkeypatch):
    taken, apply = [], attention.causal_attention
    monkeypatch.setattr(attention, 'causal_attention', lambda *given: taken.append(given[0].shape) or apply(*given))
    words = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    last = torch.tensor([8, 17])
    for dtype, trains, expected in (('bfloat16', True, 2), ('bfloat16', False, 0), ('float32', True, 0)):
        model, _ = build(tiny_lm('llama').to(getattr(torch, dtype)))
        rows = words[..., : model.llm.hidden_size].clone().requires_grad_(trains)
        taken.clear()
        model.llm.logits_at(rows, last)
        assert len(taken) == expected, (dtype, trains)
