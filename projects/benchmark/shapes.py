"""The LLMs of the benchmark: shapes with random weights, for which nothing is downloaded, or whatever --llm takes.

Speed does not depend on the weights.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PretrainedConfig
from transformers.utils import logging

from spt_parlai.model.loading import load_llm

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
}


LLM_HELP = f'an LLM as --llm of the agents takes it, or a shape with random weights: {", ".join(CONFIGS)}'
TOKENIZER_HELP = "folder of an LLM (its config.json and tokenizer) whose token ids fit a shape's vocabulary"


def build(llm: str, dtype: str, device: str = 'cpu') -> torch.nn.Module:
    """A causal LM in eval mode: of a shape in `CONFIGS`, with random weights, or what --llm takes, with its own."""
    if llm not in CONFIGS:
        return load_llm(llm, dtype=dtype, device=device).lm
    with torch.device(device):
        return AutoModelForCausalLM.from_config(CONFIGS[llm](), dtype=getattr(torch, dtype)).eval()


def tokenizer_of(llm: str) -> str:
    """Whose tokenizer makes the token ids: the LLM's own, or for a shape that of the demo LM, which has few tokens."""
    return 'demo' if llm in CONFIGS else llm
