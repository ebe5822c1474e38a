"""Make a Hugging Face model folder of a GGUF file, once, in the user's cache.

transformers reads the file, with the package `gguf`, in tens of seconds; the folder loads in one. What transformers
would read wrongly without a word, such as a tokenizer that splits text in a way it does not know, is mended or refused.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from errno import ENOSPC
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spt_parlai.errors import UsageError
from spt_parlai.gguf_files.cache import cache_root, cached_folder, is_whole
from spt_parlai.gguf_files.sources import Source

_VERSION = 1  # of what this file makes of a GGUF file
_STEPS = ('header', 'configuration', 'tokenizer', 'weights', 'files')

# Values of `tokenizer.ggml.pre`, which says how text is split before byte-pair encoding.
_SPLIT_LIKE_GPT2 = (None, 'default', 'gpt-2', 'gpt2', 'olmo', 'jais', 'mpt', 'phi-2')
_SPLIT_AT_EVERY_DIGIT_TOO = ('smollm', 'starcoder', 'refact', 'command-r', 'codeshell', 'exaone', 'minerva-7b')


def folder_name(source: Source) -> str:
    """What the folder is called in the cache: it depends on the file and on all that reads it."""
    import transformers

    return f'gguf-{source.digest}-transformers-{transformers.__version__}-{_VERSION}'


def is_dequantized(source: Source) -> bool:
    """Whether the folder is in the cache."""
    return is_whole(cache_root() / folder_name(source))


def dequantized(source: Source, llm: str, option: str = '--llm') -> Path:
    """Return the model folder made of a GGUF file; it is made now if the cache does not have it.

    :param llm, option: how the user named the file, for errors.
    :raises UsageError: for a file that is missing, damaged or of a kind that cannot be read, and if there is no room.
    """

    def make(folder: Path) -> None:
        from parlai.utils import logging

        if not source.is_there:
            raise UsageError(f'{option} {llm}: its file is not on this machine; {source.way_out}.')
        if importlib.util.find_spec('gguf') is None:
            raise UsageError(f"{option} {llm}: GGUF files need gguf: pip install 'spt_parlai[gguf]'.")
        if not source.is_right:
            raise UsageError(f'{option} {llm}: {source.parts[0]} is not the file of this checksum; {source.way_out}.')
        logging.info(f'{option} {llm}: it is dequantized once, into {cache_root()}')
        if source.terms:
            logging.info(f'{option} {llm}: {source.terms}')
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f'{folder.name}.part') as scratch:
            try:
                _convert(_whole_file(source, Path(scratch)), folder)
            except Exception as error:  # the readers of damaged files raise anything
                if at_disk := _disk_error(error):
                    raise at_disk from error
                raise UsageError(f'{option} {llm}: {_explain(error)}') from error

    try:
        return cached_folder(folder_name(source), make)
    except OSError as error:
        raise UsageError(
            f'{option} {llm}: its dequantized weights cannot be written to {cache_root()} '
            f'({error.strerror or error}); make room, or set XDG_CACHE_HOME to another folder.'
        ) from error


def _whole_file(source: Source, scratch: Path) -> Path:
    """A path of the file in a folder that has no others, from which transformers could read something."""
    path = scratch / 'model.gguf'
    if len(source.parts) == 1:
        path.symlink_to(source.parts[0].absolute())
    else:
        with open(path, 'wb') as whole:
            for part in source.parts:
                with open(part, 'rb') as file:
                    shutil.copyfileobj(file, whole)
    return path


def _convert(path: Path, folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with tqdm(total=len(_STEPS), desc='dequantizing', unit='step') as bar:
        header = _Header(path)
        needed = header.num_weights * header.dtype.itemsize
        if shutil.disk_usage(folder).free < needed:
            raise OSError(ENOSPC, f'{needed / 1e9:.1f} GB are needed')
        bar.update()
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        bar.update()
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        _mend_tokenizer(tokenizer, header)
        tokenizer.save_pretrained(folder)
        _change(folder / 'tokenizer.json', partial(_drop_added, size=header.vocabulary))
        bar.update()
        read: Any = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            config=config,
            dtype=header.dtype,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
        lm, info = read
        if wrong := sorted([*info['missing_keys'], *(name for name, *_ in info['mismatched_keys'])]):
            raise ValueError(f'{len(wrong)} tensors are missing or of another shape, such as {wrong[0]}')
        bar.update()
        lm.save_pretrained(folder)
        _change(folder / 'config.json', _compute_in_bfloat16)
        bar.update()


class _Header:
    """What a GGUF file says of itself.

    :raises ValueError: for what transformers would not read.
    """

    def __init__(self, path: Path):
        from gguf import GGMLQuantizationType, GGUFReader

        reader = GGUFReader(path)
        self.fields = reader.fields
        self.architecture = self.get('general.architecture')
        self.vocabulary = len(self.fields['tokenizer.ggml.tokens'].data)
        self.tensors = [tensor.name for tensor in reader.tensors]
        self.num_weights = sum(int(tensor.n_elements) for tensor in reader.tensors)
        self.is_full = all(tensor.tensor_type == GGMLQuantizationType.F32 for tensor in reader.tensors)
        scaled = [
            name for name in (*self.tensors, *self.fields) if name.startswith('rope_') or '.rope.scaling.' in name
        ]
        if scaled and self.architecture != 'gpt-oss':
            raise ValueError(f'its rotary embedding is scaled ({scaled[0]}), which transformers does not read')

    def get(self, name: str) -> Any:
        """A value of the file; None if it has none of this name."""
        return self.fields[name].contents() if name in self.fields else None

    @property
    def dtype(self):
        """The dtype that weights are stored in. A quantized weight is a short number times a float16 scale, which
        float16 rounds eight times more finely than bfloat16 does."""
        import torch

        return torch.float32 if self.is_full else torch.float16


def _mend_tokenizer(tokenizer, header: _Header) -> None:
    """Split text as the LLM's own tokenizer does.

    :raises ValueError: for a tokenizer that splits text in a way not known here.
    """
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


def _drop_added(state: dict[str, Any], size: int) -> None:
    """Drop tokens that are not the file's: transformers adds GPT-2's end of text to a vocabulary without it."""
    state['added_tokens'] = [token for token in state['added_tokens'] if token['id'] < size]


def _compute_in_bfloat16(config: dict[str, Any]) -> None:
    """Let a GPU compute in bfloat16 what is stored in float16, in which the activations of some LLMs overflow."""
    if config['dtype'] == 'float16':
        config['dtype'] = 'bfloat16'
    config.pop('_model_name_or_path', None)


def _change(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    state = json.loads(path.read_text(encoding='utf-8'))
    change(state)
    path.write_text(json.dumps(state, ensure_ascii=False), encoding='utf-8')


def _disk_error(error: Exception) -> OSError | None:
    """The system's error behind one of Python, of Rust, in which tokenizers and safetensors write, or None.

    transformers raises OSErrors that are none of the system's.
    """
    if isinstance(error, OSError):
        return error if error.errno else None
    found = re.search(r'\(os error (\d+)\)', str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def _explain(error: Exception) -> str:
    import transformers

    reason = ' '.join(str(error).split())[:200] or type(error).__name__
    return (
        f'transformers {transformers.__version__} cannot read this GGUF file ({reason}); if it is damaged, get it '
        'again, otherwise give the LLM as a Hugging Face id or folder.'
    )
