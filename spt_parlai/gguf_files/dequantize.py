"""Make a Hugging Face model folder of a GGUF file, once, in the user's cache.

transformers reads the file, with the package `gguf`, in tens of seconds; the folder loads in one. What it would
read wrongly without a word is mended or refused (`mending.py`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from errno import ENOSPC
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spt_parlai.errors import UsageError
from spt_parlai.gguf_files.cache import cache_root, cached_folder, is_whole
from spt_parlai.gguf_files.sources import Source

_VERSION = 1  # of what this file makes of a GGUF file
_STEPS = 5


def folder_name(source: Source) -> str:
    """What the folder is called in the cache: it depends on the file and on all that reads it."""
    return f'gguf-{source.digest}-transformers-{version("transformers")}-{_VERSION}'


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

    from spt_parlai.gguf_files.mending import Header, drop_added, mend_rotation, mend_split

    with tqdm(total=_STEPS, desc='dequantizing', unit='step') as bar, _no_further_bars():
        header = Header(path)
        needed = header.num_weights * header.dtype.itemsize
        if shutil.disk_usage(folder).free < needed:
            raise OSError(ENOSPC, f'{needed / 1e9:.1f} GB are needed')
        bar.update()
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        mend_rotation(config, header)
        bar.update()
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        mend_split(tokenizer, header)
        tokenizer.save_pretrained(folder)
        _change(folder / 'tokenizer.json', partial(drop_added, size=header.vocabulary))
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
        if too_large := [name for name, weight in lm.state_dict().items() if not weight.isfinite().all()]:
            raise ValueError(f'{too_large[0]} has values that {header.dtype} cannot hold')
        bar.update()
        lm.should_save_on_this_rank = lambda is_main_process: True  # whichever process of a distributed run comes first
        lm.save_pretrained(folder)
        _change(folder / 'config.json', _compute_in_bfloat16)
        bar.update()


@contextlib.contextmanager
def _no_further_bars() -> Iterator[None]:
    """Switch transformers' bars of seconds off; that of the tensors, which takes longest, stays."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


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
    reason = ' '.join(str(error).split())[:200] or type(error).__name__
    return (
        f'transformers {version("transformers")} cannot read this GGUF file ({reason}); if it is damaged, get it '
        'again, otherwise give the LLM as a Hugging Face id or folder.'
    )
