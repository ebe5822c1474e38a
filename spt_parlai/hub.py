"""`--llm` → tokenizer, configuration and weights, with every way this can fail told in one sentence.

`--llm` is a Hugging Face id, a local folder, or `demo` (the small LM that this package carries). Nothing here
touches the network when the files are local or cached.
"""

from __future__ import annotations

import os
from pathlib import Path

from spt_parlai.errors import UsageError

DEMO = 'demo'
DEMO_FOLDER = Path(__file__).parent / 'demo' / 'lm'


def resolve(llm: str) -> str:
    """The folder or hub id to load. Raises UsageError for a path that is not a model folder."""
    if llm == DEMO:
        return str(DEMO_FOLDER)
    if not llm or not str(llm).strip():
        raise UsageError('--llm is empty: give a Hugging Face id, a local folder, or "demo".')
    path = Path(os.path.expanduser(llm))
    if path.is_dir():
        if not (path / 'config.json').is_file():
            raise UsageError(f'--llm {llm}: the folder holds no config.json, so it is no Hugging Face model folder.')
        return str(path.resolve())
    looks_like_path = llm.startswith(('.', '/', '~')) or llm.count('/') > 1 or path.exists()
    if looks_like_path:
        raise UsageError(f'--llm {llm}: no such folder; give a model folder, a Hugging Face id, or "demo".')
    return llm


def portable(llm: str) -> str:
    """`--llm` as it is stored with a model: a local folder by its absolute path, anything else as given."""
    return llm if llm == DEMO else resolve(llm)


def load_config(llm: str, revision: str | None = None):
    """The LLM's configuration; an encoder-decoder is refused."""
    from transformers import AutoConfig

    config = _load(AutoConfig.from_pretrained, llm, revision)
    config = config.get_text_config(decoder=True)
    if config.is_encoder_decoder:
        raise UsageError(
            f'--llm {llm} is an encoder-decoder ({config.model_type}); soft prompts here need a decoder-only causal LM '
            'such as facebook/opt-125m, a Llama or GPT-2.'
        )
    return config


def load_tokenizer(llm: str, revision: str | None = None):
    """The LLM's own tokenizer, unchanged."""
    from transformers import AutoTokenizer

    return _load(AutoTokenizer.from_pretrained, llm, revision)


def load_causal_lm(llm: str, revision: str | None = None, **kwargs):
    """The LLM's weights as a `…ForCausalLM`; `kwargs` go to `from_pretrained`."""
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM.from_pretrained, llm, revision, **kwargs)


def _load(loader, llm: str, revision: str | None, **kwargs):
    source = resolve(llm)
    try:
        return loader(source, revision=revision or 'main', **kwargs)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UsageError(_explain(llm, source, revision, error)) from error


def _explain(llm: str, source: str, revision: str | None, error: Exception) -> str:
    reason = ' '.join(str(error).split())[:200]
    if os.path.isdir(source):
        return f'--llm {llm}: the folder could not be loaded as a causal LM ({reason}).'
    at = f' at revision {revision}' if revision else ''
    return (
        f'--llm {llm}{at} is neither in the local Hugging Face cache nor could it be downloaded from huggingface.co; '
        f'check the id and the network, or use a local folder (--llm FOLDER) or --llm {DEMO} ({type(error).__name__}).'
    )
