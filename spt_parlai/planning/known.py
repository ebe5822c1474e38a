"""Cards, networks, and LLMs whose shape is known without a network. The rates are the makers'."""

from __future__ import annotations

from typing import Any, NamedTuple


class Card(NamedTuple):
    """memory: bytes; flops: dense bfloat16 products (float16 where there is no bfloat16) per second."""

    memory: float
    flops: float


GIB = 2**30
CARDS = {
    'h200': Card(141e9, 989e12),
    'h100': Card(80 * GIB, 989e12),
    'a100-80': Card(80 * GIB, 312e12),
    'a100-40': Card(40 * GIB, 312e12),
    'l40s': Card(48 * GIB, 362e12),
    'l4': Card(24 * GIB, 121e12),
    'rtx4090': Card(24 * GIB, 165e12),
    'rtx3090': Card(24 * GIB, 71e12),
    'v100-32': Card(32 * GIB, 125e12),
    't4': Card(16 * GIB, 65e12),
}
NETWORKS = {'nvlink': 300e9, 'pcie4': 25e9, 'ethernet100': 12.5e9, 'ethernet25': 3.1e9}  # bytes/s of one process


def _opt(D: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        'model_type': 'opt',
        'hidden_size': D,
        'word_embed_proj_dim': D,
        'ffn_dim': 4 * D,
        'num_hidden_layers': layers,
        'num_attention_heads': heads,
        'vocab_size': 50272,
        'max_position_embeddings': 2048,
    }


def _llama2(D: int, inner: int, layers: int, heads: int, groups: int) -> dict[str, Any]:
    return {
        'model_type': 'llama',
        'hidden_size': D,
        'intermediate_size': inner,
        'num_hidden_layers': layers,
        'num_attention_heads': heads,
        'num_key_value_heads': groups,
        'vocab_size': 32000,
        'max_position_embeddings': 4096,
        'tie_word_embeddings': False,
    }


SHAPES: dict[str, dict[str, Any]] = {
    'facebook/opt-125m': _opt(768, 12, 12),
    'facebook/opt-1.3b': _opt(2048, 24, 32),
    'facebook/opt-2.7b': _opt(2560, 32, 32),
    'facebook/opt-6.7b': _opt(4096, 32, 32),
    'meta-llama/Llama-2-7b-hf': _llama2(4096, 11008, 32, 32, 32),
    'meta-llama/Llama-2-13b-hf': _llama2(5120, 13824, 40, 40, 40),
    'meta-llama/Llama-2-70b-hf': _llama2(8192, 28672, 80, 64, 8),
}
