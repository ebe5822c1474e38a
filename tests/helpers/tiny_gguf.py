"""A tiny Llama with random weights as a GGUF file, written as llama.cpp writes one."""

import json
from pathlib import Path

import numpy as np
import torch

NAMES = {
    'model.embed_tokens': 'token_embd',
    'model.norm': 'output_norm',
    'lm_head': 'output',
    'input_layernorm': 'attn_norm',
    'post_attention_layernorm': 'ffn_norm',
    'self_attn.q_proj': 'attn_q',
    'self_attn.k_proj': 'attn_k',
    'self_attn.v_proj': 'attn_v',
    'self_attn.o_proj': 'attn_output',
    'mlp.gate_proj': 'ffn_gate',
    'mlp.up_proj': 'ffn_up',
    'mlp.down_proj': 'ffn_down',
}


def tiny_llama(tokenizer, **more):
    """A Llama of two layers whose matrices can be quantized: blocks have 32 values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=320,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **more,
            )
        ).eval()


def write_gguf(path, lm, tokenizer, quantization='F32', pre='gpt-2', architecture='llama', extra=None) -> Path:
    """Write a model and its byte-level tokenizer. Vectors stay float32, as llama.cpp leaves them.

    :param extra: further tensors, by name.
    """
    import gguf

    config, kind = lm.config, gguf.GGMLQuantizationType[quantization]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name('tiny')
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters['rope_theta'])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre(pre)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = set(tokenizer.all_special_tokens)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges([pair if isinstance(pair, str) else ' '.join(pair) for pair in state['model']['merges']])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    for name, weight in lm.state_dict().items():
        values = weight.numpy()
        if 'q_proj' in name or 'k_proj' in name:  # llama.cpp rotates neighbouring values, not halves of a head
            heads = config.num_attention_heads if 'q_proj' in name else config.num_key_value_heads
            halves = values.reshape(heads, 2, -1, values.shape[1])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(_name(name), *_stored(values, kind))
    for name, values in (extra or {}).items():
        writer.add_tensor(name, np.asarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def _name(name: str) -> str:
    module, end = name.rsplit('.', 1)
    if module.startswith('model.layers.'):
        _, _, layer, module = module.split('.', 3)
        return f'blk.{layer}.{NAMES[module]}.{end}'
    return f'{NAMES[module]}.{end}'


def _stored(values: np.ndarray, kind):
    from gguf import quants

    if values.ndim == 1 or kind.name == 'F32':
        return (np.ascontiguousarray(values, dtype=np.float32),)
    stored = quants.quantize(np.ascontiguousarray(values), kind)
    return stored, None, kind


def quantized_and_back(lm, quantization: str) -> dict[str, torch.Tensor]:
    """The weights as they are read from a GGUF file."""
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType[quantization]
    return {
        name: weight
        if weight.ndim == 1 or quantization == 'F32'
        else torch.from_numpy(quants.dequantize(quants.quantize(weight.numpy(), kind), kind))
        for name, weight in lm.state_dict().items()
    }
