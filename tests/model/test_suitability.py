"""A family the method cannot work with is refused when it is loaded, in one sentence; no other is."""

from __future__ import annotations

import pytest
import torch
import transformers
from helpers.families import FAMILIES, tiny_lm

from spt_parlai.errors import UsageError, naming
from spt_parlai.model.loading import freeze, load_llm

SIZES = dict(vocab_size=60, hidden_size=32, num_hidden_layers=2)
HEADS = dict(SIZES, num_attention_heads=4, intermediate_size=48)
MOE = dict(num_local_experts=2, num_experts_per_tok=1)
PER_LAYER = dict(
    HEADS,
    num_key_value_heads=2,
    head_dim=8,
    pad_token_id=0,
    hidden_size_per_layer_input=8,
    vocab_size_per_layer_input=60,
)
UNSUITABLE = {
    'Mamba': (dict(SIZES, state_size=4), 'recurrent'),
    'Rwkv': (dict(SIZES, attention_hidden_size=32), 'recurrent'),
    'RecurrentGemma': (dict(HEADS, num_hidden_layers=3, lru_width=32), 'recurrent'),
    'Lfm2': (dict(HEADS, num_key_value_heads=2, layer_types=['conv', 'full_attention']), 'key-value cache'),
    'MiniMax': (
        dict(HEADS, num_key_value_heads=2, layer_types=['linear_attention', 'full_attention'], **MOE),
        'key-value cache',
    ),
    'MiniMaxM3VLText': (
        dict(
            HEADS,
            **MOE,
            num_key_value_heads=2,
            head_dim=8,
            rotary_dim=4,
            dense_intermediate_size=48,
            shared_intermediate_size=16,
            index_n_heads=2,
            index_head_dim=16,
            layer_types=['minimax_m3_sparse'] * 2,
        ),
        'key-value cache',
    ),
    'XLNet': (
        dict(vocab_size=60, d_model=32, n_layer=2, n_head=4, d_inner=48),
        'takes no past_key_values, position_ids',
    ),
    'OpenAIGPT': (dict(vocab_size=60, n_embd=32, n_layer=2, n_head=4), 'takes no past_key_values'),
    'CpmAnt': (
        dict(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, dim_head=8),
        'inputs_embeds',
    ),
    'RoFormer': (dict(HEADS, is_decoder=True), 'takes no position_ids'),
    'Bert': (HEADS, 'looks ahead'),
    'Gemma3nText': (
        dict(
            PER_LAYER,
            num_kv_shared_layers=0,
            laurel_rank=4,
            intermediate_size=[48, 48],
            activation_sparsity_pattern=[0.0, 0.0],
            layer_types=['full_attention'] * 2,
        ),
        'something else from word embeddings',
    ),
    'Gemma4Text': (PER_LAYER, 'does not run from input embeddings'),
}


@pytest.mark.parametrize('name', UNSUITABLE)
def test_refused_at_load_time(name, tmp_path):
    settings, reason = UNSUITABLE[name]
    torch.manual_seed(0)
    lm = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f'{name}Config')(**settings))
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
            else:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    lm.save_pretrained(tmp_path)
    with pytest.raises(UsageError) as refusal, naming('--llm', tmp_path):
        load_llm(str(tmp_path))
    sentence = str(refusal.value)
    assert reason in sentence and f'--llm {tmp_path}: {type(lm).__name__} ' in sentence
    assert '\n' not in sentence and sentence.endswith('.')


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('family', FAMILIES)
def test_accepted(family, dtype):
    lm = tiny_lm(family).to(dtype)
    frozen = freeze(lm)
    assert frozen.lm is lm and frozen.dtype == dtype


def test_an_lm_that_passes_its_output_projection_by_gives_its_own_logits():
    lm = tiny_lm('opt').eval()
    bypassed = torch.nn.Linear(32, 60)
    lm.get_output_embeddings = lambda: bypassed
    frozen, ids = freeze(lm), torch.tensor([[5, 6, 7]])
    assert not frozen.head_is_linear
    logits = frozen.logits_at(frozen.embed(ids), torch.tensor([0, 2]))
    torch.testing.assert_close(logits, lm(input_ids=ids).logits[0, [0, 2]])


@pytest.mark.parametrize('family', ['opt-350m', 'llama'])
def test_offloaded_weights(family):
    """Where accelerate keeps the weights elsewhere, inputs go to where it runs them; the results are the same."""
    accelerate = pytest.importorskip('accelerate')
    expected = freeze(tiny_lm(family))
    lm = tiny_lm(family)
    accelerate.cpu_offload(lm, execution_device='cpu')
    assert lm.get_input_embeddings().weight.device.type == 'meta'
    frozen = freeze(lm)
    assert frozen.device.type == 'cpu'
    ids = torch.tensor([[5, 6, 7]])
    for a, b in zip(_prefill(frozen, ids), _prefill(expected, ids), strict=True):
        torch.testing.assert_close(a, b)


def _prefill(frozen, ids):
    words = frozen.embed(ids)
    return words, frozen.prefill(words, torch.ones_like(ids, dtype=torch.bool))[0]


def test_loading_freezes(tmp_path):
    tiny_lm('opt-350m').save_pretrained(tmp_path)
    frozen = load_llm(str(tmp_path), dtype='bfloat16')
    assert frozen.dtype == torch.bfloat16 and frozen.hidden_size == 32
    assert not frozen.lm.training and not any(p.requires_grad for p in frozen.lm.parameters())
