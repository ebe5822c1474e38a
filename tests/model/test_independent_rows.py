"""A row's results are the same alone and beside any other row that fits into the window, for every family of LLMs."""

from __future__ import annotations

import functools

import pytest
import torch
from helpers.families import LLAMA_LIKE as LLAMA
from helpers.families import VOCAB, Naive, build, draw, pad, random_lm

from spt_parlai.agents.batching import window_size
from spt_parlai.model.loading import freeze
from spt_parlai.model.prompted_lm import PromptedLM

CLOSE = dict(rtol=1e-4, atol=1e-4)
LENGTH = 2  # tokens of the soft prompts of `build`

WINDOWS = {**LLAMA, 'sliding_window': 4, 'layer_types': ['sliding_attention', 'full_attention']}
LOW_RANK = dict(q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8)
EXPERTS = dict(num_local_experts=3, num_experts_per_tok=2)


def rope(kind: str, **settings) -> dict:
    return {'rope_parameters': {'rope_type': kind, 'rope_theta': 10000.0, **settings}}


def longrope(**settings) -> dict:
    factors = dict(short_factor=[1.0] * 4, long_factor=[4.0] * 4, original_max_position_embeddings=16)
    return rope('longrope', **factors, **settings)


FAMILIES = {
    'linear rope': ('Llama', {**LLAMA, **rope('linear', factor=2.0)}),
    'dynamic rope': ('Llama', {**LLAMA, **rope('dynamic', factor=4.0), 'max_position_embeddings': 32}),
    'yarn': ('Llama', {**LLAMA, **rope('yarn', factor=4.0, original_max_position_embeddings=8)}),
    'learned positions': ('BioGpt', {**LLAMA, 'pad_token_id': 0}),
    'sine positions': (
        'XGLM',
        dict(vocab_size=VOCAB, d_model=32, ffn_dim=48, num_layers=2, attention_heads=4, max_position_embeddings=64),
    ),
    'relative to the mask': ('GPTBigCode', dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    'alternating windows': ('Cohere2', {**WINDOWS, 'head_dim': 8, 'pad_token_id': 0}),
    'chunks': (
        'Llama4Text',
        {
            **LLAMA,
            **EXPERTS,
            'head_dim': 8,
            'intermediate_size_mlp': 48,
            'attention_chunk_size': 4,
            'layer_types': ['chunked_attention', 'full_attention'],
            'num_experts_per_tok': 1,
        },
    ),
    'sinks': ('GptOss', {**WINDOWS, **EXPERTS, 'head_dim': 8}),
    'experts': ('Qwen3Moe', {**LLAMA, 'head_dim': 8, 'num_experts': 3, 'num_experts_per_tok': 2}),
    'latent attention': (
        'DeepseekV3',
        {**LLAMA, **LOW_RANK, 'num_key_value_heads': 4, 'n_routed_experts': 4, 'n_group': 1, 'topk_group': 1},
    ),
    'longrope': ('Phi3', {**LLAMA, **longrope(), 'original_max_position_embeddings': 16, 'pad_token_id': 0}),
    'longrope with experts': (
        'Phimoe',
        {
            **LLAMA,
            **EXPERTS,
            **longrope(short_mscale=1.2, long_mscale=1.5),
            'original_max_position_embeddings': 16,
        },
    ),
    'longrope of some layers': (
        'Gemma3Text',
        {
            **WINDOWS,
            'head_dim': 8,
            'pad_token_id': 0,
            'rope_parameters': {
                'sliding_attention': {'rope_type': 'default', 'rope_theta': 10000.0},
                'full_attention': longrope()['rope_parameters'],
            },
        },
    ),
    'dynamic mask': ('Doge', {**LLAMA, 'keep_window_size': 16}),
}
LIMITED = ('longrope', 'longrope with experts', 'longrope of some layers', 'dynamic mask')


@pytest.fixture(scope='module', params=FAMILIES)
def pair(request) -> tuple[PromptedLM, Naive]:
    model, naive = build(random_lm(*FAMILIES[request.param]))
    window = window_size(model.llm.lm.config)
    assert window == (16 if request.param in LIMITED else model.llm.lm.config.max_position_embeddings)
    model.window = window
    return model, naive


def rows_of(model: PromptedLM) -> tuple[list[list[int]], list[list[int]]]:
    """Contexts and targets; with its soft prompt the longest row fills the window, or at least 30 tokens of it."""
    window = min(model.window, 30)
    lengths = [4, window - LENGTH - 3, 1, window - LENGTH - 6]
    return draw(lengths, seed=1), draw([3, 4, 2, 1], seed=2)


def test_log_probs_and_gradients(pair):
    model, naive = pair
    contexts, targets = rows_of(model)
    prediction, gradient = run(model, contexts, targets)
    for k in range(3):
        expected = [p for c, y in zip(contexts, targets, strict=True) for p in naive.log_probs(k, c, y)]
        torch.testing.assert_close(prediction[k].double(), torch.tensor(expected).double(), **CLOSE)
    alone = [run(model, [c], [y])[1] for c, y in zip(contexts, targets, strict=True)]
    torch.testing.assert_close(gradient, sum(alone), rtol=1e-3, atol=1e-3)


def run(model, contexts, targets):
    model.soft_prompts.zero_grad()
    prediction = model(pad(contexts), pad(targets))
    prediction.log_probs.sum().backward()
    return prediction.log_probs.detach(), model.soft_prompts.tokens.grad.clone()


def test_turns_that_share_a_row(pair):
    """The first turn of a dialogue is computed as if nothing followed."""
    model, naive = pair
    contexts, _ = rows_of(model)
    whole, first = contexts[1], 5
    target = whole[first : first + 2]
    rows = dict(row=torch.tensor([0, 0]), context_length=torch.tensor([first, len(whole)]))
    prediction = model(pad([whole]), pad([target, [7, 8]]), **rows)
    expected = naive.log_probs(0, whole[:first], target) + naive.log_probs(0, whole, [7, 8])
    torch.testing.assert_close(prediction.log_probs[0].double(), torch.tensor(expected).double(), **CLOSE)


@torch.no_grad()
def test_decoding(pair):
    model, naive = pair
    contexts, _ = rows_of(model)
    replies = draw([4] * len(contexts), seed=3)
    encoded = model.encoder(pad(contexts))
    state, ids, steps = None, torch.full((len(contexts), 1), -2), []
    for i in range(4):
        logits, state = model.decoder(ids, encoded, state)
        steps.append(logits[:, -1])
        ids = torch.cat([ids, torch.tensor(replies)[:, i : i + 1]], dim=1)
    for n, (context, reply) in enumerate(zip(contexts, replies, strict=True)):
        expected = naive.logits(int(encoded.selected[n]), context + reply[:-1])[len(context) - 1 :]
        torch.testing.assert_close(torch.stack(steps, 1)[n].double(), expected, **CLOSE)


@pytest.mark.parametrize('name', ['attention_mask', 'position_ids'])
def test_an_lm_that_ignores_what_tells_padding_apart_is_refused(name):
    lm = random_lm('GPT2', dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    forward = lm.transformer.forward
    lm.transformer.forward = functools.wraps(forward)(lambda *args, **kwargs: forward(*args, **{**kwargs, name: None}))
    with pytest.raises(ValueError, match='GPT2LMHeadModel computes something else for a row beside a longer one'):
        freeze(lm)
