"""One new token's attention over shared keys and values equals transformers' own, and is what decoding uses."""

import pytest
import torch
import torch.nn.functional as F
from helpers.families import build, draw, pad, tiny_lm
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from spt_parlai.model.attention import share_keys_within_groups

H, G, T, D = 6, 2, 11, 8


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('masked', [True, False])
@pytest.mark.parametrize('S', [1, 3])
def test_equals_transformers_own(dtype, masked, S):
    share_keys_within_groups()
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
