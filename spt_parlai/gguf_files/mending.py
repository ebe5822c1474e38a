"""What transformers reads wrongly from a GGUF file without a word: mended here, or refused.

Each function raises a ValueError for what it cannot mend.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

# Values of `tokenizer.ggml.pre`, which says how text is split before byte-pair encoding.
_SPLIT_LIKE_GPT2 = (None, 'default', 'gpt-2', 'gpt2', 'olmo', 'jais', 'mpt', 'phi-2')
_SPLIT_AT_EVERY_DIGIT_TOO = ('smollm', 'starcoder', 'refact', 'command-r', 'codeshell', 'exaone', 'minerva-7b')

_ROTATION_OF_LLAMA_3 = {'low_freq_factor': 1.0, 'high_freq_factor': 4.0, 'original_max_position_embeddings': 8192}


class Header:
    """What a GGUF file says of itself."""

    def __init__(self, path: Path):
        from gguf import GGMLQuantizationType, GGUFReader

        reader = GGUFReader(path)
        self.fields = reader.fields
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.vocabulary = len(self.fields['tokenizer.ggml.tokens'].data)
        self.num_weights = sum(int(tensor.n_elements) for tensor in reader.tensors)
        self._is_full = all(tensor.tensor_type == GGMLQuantizationType.F32 for tensor in reader.tensors)

    def get(self, name: str) -> Any:
        """A value of the file; None if it has none of this name."""
        return self.fields[name].contents() if name in self.fields else None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype to store the weights in. A quantized weight is a short number times a float16 scale, which float16
        rounds eight times more finely than bfloat16 does."""
        return torch.float32 if self._is_full else torch.float16


def mend_split(tokenizer, header: Header) -> None:
    """Split text as the LLM's own tokenizer does."""
    from tokenizers import pre_tokenizers

    backend, pre = tokenizer.backend_tokenizer, header.get('tokenizer.ggml.pre')
    if header.get('tokenizer.ggml.model') == 'gpt2' and isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        if pre in _SPLIT_AT_EVERY_DIGIT_TOO:
            digits = pre_tokenizers.Digits(individual_digits=True)
            backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        elif pre not in _SPLIT_LIKE_GPT2:
            raise ValueError(f'its tokenizer splits text in a way that transformers does not know ({pre})')
    if header.get('tokenizer.ggml.add_space_prefix') is False and tokenizer.tokenize('Q')[0].startswith('▁'):
        raise ValueError('its tokenizer puts no space before a text, which transformers does')


def drop_added(state: dict[str, Any], size: int) -> None:
    """Drop tokens that are not the file's: transformers adds GPT-2's end of text to a vocabulary without it.

    :param state: the content of a tokenizer.json.
    """
    state['added_tokens'] = [token for token in state['added_tokens'] if token['id'] < size]


def mend_rotation(config, header: Header) -> None:
    """Scale the rotary embedding as the file says. It holds Llama 3's as a tensor of one divisor for each frequency."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    architecture = header.get('general.architecture')
    kind = header.get(f'{architecture}.rope.scaling.type')
    others = [name for name in header.tensors if name.startswith('rope_') and name != 'rope_freqs.weight']
    if architecture != 'gpt-oss' and (others or kind not in (None, 'none')):
        raise ValueError(f'its rotary embedding is scaled ({others[0] if others else kind}), which is not read')
    if 'rope_freqs.weight' not in header.tensors:
        return
    divisors = torch.tensor(header.tensors['rope_freqs.weight'].data)
    size, theta = 2 * len(divisors), config.rope_parameters['rope_theta']
    config.rope_parameters = {
        **config.rope_parameters,
        'rope_type': 'llama3',
        'factor': divisors.max().item(),
        **_ROTATION_OF_LLAMA_3,
    }
    frequencies, _ = ROPE_INIT_FUNCTIONS['llama3'](config)
    unscaled = theta ** (-torch.arange(0, size, 2) / size)
    if frequencies.shape != divisors.shape or not torch.allclose(unscaled / frequencies, divisors, rtol=1e-3):
        raise ValueError('its rotary embedding is scaled in a way other than that of Llama 3')
