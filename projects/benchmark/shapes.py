"""LLMs of a given shape, built from a configuration with random weights, so that nothing is downloaded.

Speed does not depend on the weights.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PretrainedConfig
from transformers.utils import logging

from spt_parlai.hub import DEMO, load_causal_lm, load_config

logging.disable_progress_bar()


def _opt(D: int, layers: int, heads: int, V: int = 50272, positions: int = 2048) -> PretrainedConfig:
    return OPTConfig(
        hidden_size=D,
        word_embed_proj_dim=D,
        ffn_dim=4 * D,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=V,
        max_position_embeddings=positions,
        dropout=0.0,
    )


CONFIGS = {
    'tiny': lambda: _opt(64, 2, 2, V=8192, positions=512),
    'tiny-llama': lambda: LlamaConfig(
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=8192,
        max_position_embeddings=512,
    ),
    'opt-125m': lambda: _opt(768, 12, 12),
    'opt-1.3b': lambda: _opt(2048, 24, 32),
    'opt-2.7b': lambda: _opt(2560, 32, 32),
    'llama2-7b': lambda: LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32000,
        max_position_embeddings=4096,
    ),
    DEMO: lambda: load_config(DEMO),
}


def build(shape: str, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """A causal LM of this shape in eval mode. Only the demo LM of the package has trained weights."""
    if shape == DEMO:
        return load_causal_lm(DEMO, dtype=dtype).to(device).eval()
    with torch.device(device):
        return AutoModelForCausalLM.from_config(CONFIGS[shape](), dtype=dtype).eval()
