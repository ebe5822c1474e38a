"""The LM is frozen, unseen by what trains, and never changed; what trains stays in float32."""

from __future__ import annotations

import pytest
import torch
from helpers.families import VOCAB, build, draw, pad, tiny_lm

from spt_parlai.model.causal_lm import CausalLM
from spt_parlai.objective import SptObjective

CONTEXTS, TARGETS = draw([6, 2, 4], seed=1), draw([3, 1, 2], seed=2)
SIMILAR = torch.tensor([[False, True, False], [False, False, False], [False, False, False]])
TRAINED = {
    'soft_prompts.tokens',
    'retriever.lin_context.weight',
    'retriever.lin_context.bias',
    'retriever.lin_prompt.weight',
    'retriever.lin_prompt.bias',
}


@pytest.fixture
def model():
    return build(tiny_lm('opt'))[0]


def total_loss(model):
    prediction = model(pad(CONTEXTS), pad(TARGETS))
    return SptObjective()(prediction.log_probs, prediction.scores, prediction.example, SIMILAR).total


def test_no_weight_of_the_lm_requires_grad():
    lm = tiny_lm('llama')
    assert all(p.requires_grad for p in lm.parameters())
    CausalLM(lm)
    assert not any(p.requires_grad for p in lm.parameters())


def test_the_lm_stays_in_eval_mode(model):
    model.train()
    assert model.training and not any(m.training for m in model.llm.lm.modules())
    assert torch.equal(total_loss(model), total_loss(model)), 'dropout is at work'


def test_only_what_trains_is_registered(model):
    assert {name for name, _ in model.named_parameters()} == TRAINED
    assert set(model.state_dict()) == TRAINED
    held = {id(p) for p in model.parameters()}
    assert not held & {id(p) for p in model.llm.lm.parameters()}


def test_gradient_reaches_all_that_trains_and_nothing_else(model):
    total_loss(model).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert all(p.grad is None for p in model.llm.lm.parameters())


def test_training_changes_no_bit_of_the_lm(model):
    before = {k: v.clone() for k, v in model.llm.lm.state_dict().items()}
    trained = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(total_loss(model))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(torch.equal(v, before[k]) for k, v in model.llm.lm.state_dict().items())
    assert not any(torch.equal(v, trained[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    'cast',
    [
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.double(),
        lambda m: m.to(torch.float16),
        lambda m: m.to('cpu', torch.bfloat16),
    ],
    ids=['half', 'bfloat16', 'double', 'to(float16)', 'to(cpu, bfloat16)'],
)
def test_no_cast_touches_what_trains(model, cast):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert cast(model) is model
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[name]), name
    assert model.llm.dtype == torch.float32
    assert next(model.to('meta').parameters()).device.type == 'meta', 'it can no longer be moved'


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('family', ['opt-350m', 'llama', 'gemma2'])
def test_half_precision_lm(family, dtype):
    """A 16-bit LM gives float32 log-probabilities near those of the same weights in float32."""
    model, naive = build(tiny_lm(family).to(dtype))
    naive.lm.float()
    naive.prompt_words = naive.prompt_words.float()
    prediction = model(pad(CONTEXTS), pad(TARGETS))
    assert prediction.log_probs.dtype == prediction.scores.dtype == torch.float32
    for k in range(3):
        expected = [p for c, y in zip(CONTEXTS, TARGETS, strict=True) for p in naive.log_probs(k, c, y)]
        torch.testing.assert_close(prediction.log_probs[k], torch.tensor(expected), rtol=0.05, atol=0.3)
    total_loss(model).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all(), name
    assert model.soft_prompts.tokens.grad.abs().sum() > 0


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_decoding(dtype):
    model, _ = build(tiny_lm('llama').to(dtype))
    with torch.no_grad():
        encoded = model.encoder(pad(CONTEXTS))
        logits, state = model.decoder(torch.full((3, 1), -2), encoded)
        more, _ = model.decoder(logits[:, -1].argmax(-1, keepdim=True), encoded, state)
    for step in (model.output(logits), model.output(more)):
        assert step.dtype == torch.float32 and step.shape == (3, 1, VOCAB) and step.isfinite().all()


def test_sizes_of_an_lm_with_an_input_projection():
    lm = tiny_lm('opt-350m')
    words = lm.get_input_embeddings().weight.detach()
    projected = lm.model.decoder.project_in(words).detach()
    frozen = CausalLM(lm)
    assert (frozen.hidden_size, words.shape[1]) == (32, 16)
    assert torch.equal(frozen.embed(torch.arange(VOCAB)), projected)


def test_fingerprint_tells_shapes_apart():
    prints = [CausalLM(tiny_lm(f)).fingerprint() for f in ('opt', 'opt-350m', 'llama', 'qwen2', 'mistral')]
    assert prints[2]['model_type'] == 'llama' and prints[2]['hidden_size'] == 32 and prints[2]['vocab_size'] == VOCAB
    assert len({p['shapes'] for p in prints}) >= 4  # Llama's and Mistral's weights have the same shapes
    assert len({tuple(p.items()) for p in prints}) == 5
    assert CausalLM(tiny_lm('opt', seed=1)).fingerprint() == prints[0]


def test_the_lm_itself_still_gives_all_logits(model):
    """Computing logits at some positions changes nothing of the LM."""
    assert model.llm.lm(input_ids=pad([CONTEXTS[0]])).logits.shape == (1, 6, VOCAB)
    total_loss(model)
    assert model.llm.lm(input_ids=pad([CONTEXTS[0]])).logits.shape == (1, 6, VOCAB)


@pytest.mark.parametrize('keeps_columns', [True, False])
def test_capped_logits_are_computed_in_the_columns_that_are_needed(keeps_columns):
    """Where the head is not linear, the LM narrows its logits itself, if it can."""
    llm, positions, shapes = CausalLM(tiny_lm('gemma2')), torch.tensor([1, 3, 9]), []
    llm._keeps_columns &= keeps_columns
    words = llm.embed(pad(draw([6, 6], seed=1)))
    expected = llm.lm(inputs_embeds=words).logits.flatten(0, 1)[positions]
    assert not llm.head_is_linear
    llm.lm.get_output_embeddings().register_forward_hook(lambda head, inputs, output: shapes.append(output.shape))
    torch.testing.assert_close(llm.logits_at(words, positions), expected)
    assert shapes == [(2, 2 if keeps_columns else 6, VOCAB)]


@pytest.mark.parametrize('family', ['opt-350m', 'llama', 'gpt2'])
def test_a_linear_head_runs_at_the_chosen_positions_only(family):
    llm, positions, shapes = CausalLM(tiny_lm(family)), torch.tensor([1, 3, 9]), []
    words = llm.embed(pad(draw([6, 6], seed=1)))
    expected = llm.lm(inputs_embeds=words).logits.flatten(0, 1)[positions]
    assert llm.head_is_linear
    llm.lm.get_output_embeddings().register_forward_hook(lambda head, inputs, output: shapes.append(output.shape))
    torch.testing.assert_close(llm.logits_at(words, positions), expected)
    llm.prefill(words, torch.ones(words.shape[:2], dtype=torch.bool))
    assert shapes == [(3, VOCAB), (2, VOCAB)]
