"""Prompts in chunks and recomputed activations: the same numbers in less memory."""

from __future__ import annotations

import pytest
import torch
from helpers.families import FAMILIES, build, draw, pad, tiny_lm

from spt_parlai.model.causal_lm import CausalLM
from spt_parlai.model.layer_execution import recompute_activations
from spt_parlai.model.memory_estimate import _kept_by_a_row, estimate_memory, training_memory

CONTEXTS, TARGETS = draw([7, 3, 11, 5], seed=1), draw([3, 1, 5, 2], seed=2)


def gradients(model):
    """(prediction, gradients of prompts and retriever) of a loss that every output enters."""
    model.zero_grad()
    prediction = model(pad(CONTEXTS), pad(TARGETS))
    weights = torch.linspace(0.1, 1, prediction.log_probs.numel()).view_as(prediction.log_probs)
    ((prediction.log_probs * weights).sum() + prediction.scores.square().sum()).backward()
    return prediction, {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(found, expected):
    (prediction, gradient), (prediction0, gradient0) = found, expected
    for name, value in prediction._asdict().items():
        torch.testing.assert_close(value, getattr(prediction0, name), rtol=1e-5, atol=1e-6)
    assert set(gradient) == set(gradient0)
    for name in gradient:
        assert gradient[name].any()
        torch.testing.assert_close(gradient[name], gradient0[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('chunk', [1, 2])
@pytest.mark.parametrize('family', FAMILIES)
def test_chunks_of_prompts(family, chunk):
    model = build(tiny_lm(family))[0]
    expected = gradients(model)
    model.prompt_chunk = chunk
    assert_same(gradients(model), expected)


@pytest.mark.parametrize('chunk', [3, 1])
@pytest.mark.parametrize('family', FAMILIES)
def test_recomputed_activations(family, chunk):
    model = build(tiny_lm(family))[0]
    expected = gradients(model)
    recompute_activations(model.llm)
    model.prompt_chunk = chunk
    assert_same(gradients(model), expected)
    assert not any(module.training for module in model.llm.lm.modules())


def test_recomputing_keeps_an_eval_lm_free_of_dropout():
    """OPT's layers drop by themselves wherever they are told that they train."""
    lm = tiny_lm('opt')
    for layer in lm.model.decoder.layers:
        layer.dropout = 0.5
    model = build(lm)[0]
    expected = gradients(model)
    recompute_activations(model.llm)
    assert_same(gradients(model), expected)


def test_decoding_still_caches(recwarn):
    model = build(tiny_lm('llama'))[0].eval()
    recompute_activations(model.llm)
    encoded = model.encoder(pad(CONTEXTS))
    assert encoded.cache.get_seq_length() == encoded.mask.shape[1]


def test_recomputing_keeps_less():
    """What autograd holds between forward and backward, counted with its own hooks."""

    def held(prepare):
        model = build(tiny_lm('llama'))[0]
        prepare(model)
        sizes = {}

        def note(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            prediction = model(pad(CONTEXTS), pad(TARGETS))
        assert prediction.log_probs.requires_grad
        return sum(sizes.values())

    everything = held(lambda model: None)
    assert held(lambda model: recompute_activations(model.llm)) < 0.7 * everything
    assert held(lambda model: setattr(model, 'prompt_chunk', 1)) < 0.7 * everything


def test_an_lm_that_cannot_is_refused():
    lm = tiny_lm('llama')
    lm.supports_gradient_checkpointing = False
    with pytest.raises(ValueError, match='LlamaForCausalLM has no activation checkpointing; train without it'):
        recompute_activations(CausalLM(lm))


@pytest.mark.parametrize('family', ['opt', 'llama', 'gpt2'])
def test_memory_estimate_foretells_longer_rows(family):
    llm = CausalLM(tiny_lm(family))
    estimate = estimate_memory(llm, 60)
    assert estimate.row == pytest.approx(_kept_by_a_row(llm, 60), rel=0.02)
    assert estimate.weights == sum(p.numel() * 4 for p in llm.lm.parameters())
    assert (
        estimate.total(2, 3) == estimate.weights + 2 * estimate.row + 3 * 60 * 4 * 4
    )  # V = 60: logits and three copies
    assert estimate.total(0, 10**9) == estimate.weights + 3 * 64 * 2**20  # never all of them at once


def test_memory_line():
    llm = CausalLM(tiny_lm('opt'))
    line = training_memory(llm, batchsize=8, prompts_at_once=2, length=50, targets=10)
    estimate = estimate_memory(llm, 50)
    assert f'{estimate.total(16, 160) / 1e6:.1f} MB in all' in line and 'a batch of 8 x 2 prompts' in line
