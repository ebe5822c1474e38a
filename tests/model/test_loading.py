"""Where and how the frozen LLM lies in memory changes nothing of what it computes."""

from __future__ import annotations

import json

import pytest
import torch

from spt_parlai.model.loading import load_llm, quantization_config, read_device_map
from spt_parlai.model.prompted_lm import PromptedLM
from spt_parlai.model.retriever import Retriever
from spt_parlai.model.soft_prompts import SoftPromptGroup


def outcome(llm):
    """(log-probabilities, gradient of the prompts, greedy continuation) with fixed prompts around `llm`."""
    torch.manual_seed(0)
    model = PromptedLM(llm, SoftPromptGroup(torch.randn(2, 3, llm.hidden_size)), Retriever(llm.hidden_size), -1, -2, 1)
    contexts, targets = torch.tensor([[5, 9, 20, 7], [8, 3, -1, -1]]), torch.tensor([[4, 6, 1], [11, 1, -1]])
    prediction = model(contexts, targets)
    prediction.log_probs.sum().backward()
    with torch.no_grad():
        encoded = model.encoder(contexts)
        logits, _ = model.decoder(encoded.logits.argmax(-1)[:, None], encoded, encoded)
    return prediction.log_probs.detach(), model.soft_prompts.tokens.grad, logits


def assert_close(found, expected, **tolerance):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize('places', [('cpu', 'cpu'), ('cpu', 'disk'), ('disk', 'disk')], ids='-'.join)
@pytest.mark.parametrize('name, body', [('opt', 'model.decoder'), ('llama', 'model')])
def test_device_map(tiny_llms, tmp_path, name, body, places):
    """Some layers on disk, fetched when they are run: same numbers, same shape fingerprint."""
    norm = {'opt': 'final_layer_norm', 'llama': 'norm'}[name]
    extra = {'opt': ['embed_positions'], 'llama': ['rotary_emb']}[name]
    placement = {f'{body}.{part}': 'cpu' for part in ('embed_tokens', norm, *extra)} | {'lm_head': 'cpu'}
    placement |= {f'{body}.layers.{i}': place for i, place in enumerate(places)}
    path = tmp_path / 'map.json'
    path.write_text(json.dumps(placement))
    plain = load_llm(getattr(tiny_llms, name))
    spread = load_llm(getattr(tiny_llms, name), device_map=read_device_map(str(path)))
    assert spread.fingerprint() == plain.fingerprint()
    on_disk = sum(p.is_meta for p in spread.lm.parameters())
    assert (on_disk > 0) == ('disk' in places)
    assert_close(outcome(spread), outcome(plain))


@pytest.mark.parametrize('placement', ['auto', 'balanced'])
def test_accelerates_own_placement(tiny_llms, placement):
    assert_close(
        outcome(load_llm(tiny_llms.llama, device_map=read_device_map(placement))), outcome(load_llm(tiny_llms.llama))
    )


@pytest.mark.parametrize('dtype, tolerance', [('bfloat16', 0.1), ('float16', 0.01)])
def test_half_precision(tiny_llms, dtype, tolerance):
    """The LLM in half precision, log-probabilities and gradients in float32."""
    llm = load_llm(tiny_llms.opt, dtype=dtype)
    log_probs, gradient, _ = outcome(llm)
    assert llm.dtype == getattr(torch, dtype) and log_probs.dtype == gradient.dtype == torch.float32
    expected = outcome(load_llm(tiny_llms.opt))[0]
    torch.testing.assert_close(log_probs, expected, rtol=tolerance, atol=tolerance)


def test_8_bits(tiny_llms):
    pytest.importorskip('bitsandbytes', reason="pip install 'spt_parlai[quantization]'")
    plain, small = (
        load_llm(tiny_llms.opt),
        load_llm(tiny_llms.opt, quantization=quantization_config('8bit', 'auto', 'cpu')),
    )
    assert small.fingerprint() == plain.fingerprint() and small.num_parameters == plain.num_parameters
    assert any(p.dtype == torch.int8 for p in small.lm.parameters())
    (log_probs, gradient, _), (expected, expected_gradient, _) = outcome(small), outcome(plain)
    torch.testing.assert_close(log_probs, expected, rtol=0.05, atol=0.05)
    assert float((gradient - expected_gradient).norm() / expected_gradient.norm()) < 0.1


def test_4_bits_on_a_cpu_are_refused():
    pytest.importorskip('bitsandbytes', reason="pip install 'spt_parlai[quantization]'")
    with pytest.raises(ValueError, match='this needs a GPU, .* CPU kernels cannot be trained through; use 8bit'):
        quantization_config('4bit', 'auto', 'cpu')
