"""Load tokenizer, configuration and weights of an LLM or a text encoder; each failure is reported in one sentence.

An LLM is a Hugging Face id, a local folder, a GGUF file or the name of one that can be installed, or `demo` (the small
LM inside this package). A folder is read without the network. If the hub does not answer, an id is read from the local
cache at once, without the library's long retries.
"""

from __future__ import annotations

import importlib.util
import json
import os
from functools import lru_cache
from pathlib import Path

from spt_parlai.errors import UsageError
from spt_parlai.gguf_files import sources
from spt_parlai.gguf_files.dequantize import dequantized, is_dequantized

DEMO = 'demo'
DEMO_FOLDER = Path(__file__).parent / 'demo' / 'lm'


def resolve(llm: str, option: str = '--llm') -> str:
    """The folder or hub id to load. Raises UsageError, which names `option`, for a path that is no model folder."""
    if llm == DEMO:
        return str(DEMO_FOLDER)
    if not llm or not str(llm).strip():
        raise UsageError(f'{option} is empty: give a Hugging Face id, a local folder, or "demo".')
    if source := sources.find(llm, option):
        return str(dequantized(source, llm, option))
    path = os.path.expanduser(llm)
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, 'config.json')):
            raise UsageError(
                f'{option} {llm}: the folder holds no config.json, so it is no Hugging Face model folder; '
                'give one that has this file.'
            )
        return str(Path(path).resolve())
    looks_like_path = llm.startswith(('.', '/', '~')) or llm.count('/') > 1 or os.path.exists(path)
    if looks_like_path:
        raise UsageError(f'{option} {llm}: no such folder; give a model folder, a Hugging Face id, or "demo".')
    return llm


def portable(llm: str) -> str:
    """`--llm` as a model file stores it: an id or name, or an absolute path, that of a GGUF file with its checksum."""
    if llm == DEMO:
        return llm
    source = sources.find(llm)
    return source.reference if source else resolve(llm)


def hub_id(llm: str) -> str:
    """How software that knows only folders and hub ids names the LLM of a model file."""
    if llm == DEMO:
        return str(DEMO_FOLDER)
    return sources.PACKAGED[llm].hub_id if llm in sources.PACKAGED else llm


def named_llms() -> list[tuple[str, str, str, str, str]]:
    """Of every LLM with a name: the name, the hub id of the same LLM, the size of its file, its licence, and whether
    it is at hand."""
    rows = [(DEMO, '', '15 MB', 'MIT', 'yes')]
    for name, llm in sources.PACKAGED.items():
        source = sources.find(name)
        assert source is not None
        if is_dequantized(source):
            at_hand = 'yes'
        else:
            at_hand = 'yes, to be dequantized at its first use' if source.is_there else f'no: {llm.install}'
        rows.append((name, llm.hub_id, f'{llm.size / 1e6:.0f} MB', llm.licence, at_hand))
    return rows


def load_config(llm: str, revision: str | None = None):
    """The LLM's configuration. Raises UsageError for an encoder-decoder."""
    from transformers import AutoConfig

    config = _load(AutoConfig.from_pretrained, llm, revision)
    config = config.get_text_config(decoder=True)
    if config.is_encoder_decoder:
        raise UsageError(
            f'--llm {llm} is an encoder-decoder ({config.model_type}), but soft prompts need a decoder-only LM; '
            'give one such as facebook/opt-125m, a Llama or GPT-2.'
        )
    return config


def load_tokenizer(llm: str, revision: str | None = None, option: str = '--llm'):
    """The LLM's own tokenizer, unchanged. Raises UsageError if no tokenizer files are found with it."""
    from transformers import AutoTokenizer

    tokenizer = _load(AutoTokenizer.from_pretrained, llm, revision, option)
    # Without tokenizer files transformers returns a tokenizer to which all text is unknown.
    if set(tokenizer.encode('Q: R:', add_special_tokens=False)) <= {tokenizer.unk_token_id}:
        raise UsageError(
            f'{option} {llm}: no tokenizer files were found with it; put its tokenizer.json beside its config.json.'
        )
    return tokenizer


def load_causal_lm(llm: str, revision: str | None = None, **kwargs):
    """The LLM as a `…ForCausalLM`; `kwargs` go to `from_pretrained`. Raises UsageError if weights would stay random."""
    from transformers import AutoModelForCausalLM

    def load(source, local_files_only, **kwargs):
        adapters = {'local_files_only': local_files_only}  # PEFT, if it is installed, looks for adapters on its own
        return AutoModelForCausalLM.from_pretrained(
            source, local_files_only=local_files_only, adapter_kwargs=adapters, **kwargs
        )

    lm, info = _load(load, llm, revision, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    wrong = [*sorted(info['missing_keys']), *sorted(name for name, *_ in info['mismatched_keys'])]
    if wrong:
        raise UsageError(
            f'--llm {llm}: its weights do not belong to its config.json ({len(wrong)} tensors are missing or of '
            f'another shape, such as {wrong[0]}); take both from the same model.'
        )
    return lm


def stored_dtype(llm: str, revision: str | None = None):
    """The torch dtype of all weights in the LLM's safetensors files; None if they have several, or for other files."""
    from safetensors import safe_open
    from transformers.modeling_utils import str_to_torch_dtype
    from transformers.utils.hub import cached_file

    def found(source, **kwargs):
        index = cached_file(
            source, 'model.safetensors.index.json', _raise_exceptions_for_missing_entries=False, **kwargs
        )
        names = ['model.safetensors']
        if index:
            names = sorted(set(json.loads(Path(index).read_text(encoding='utf-8'))['weight_map'].values()))
        dtypes = set()
        for name in names:
            path = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **kwargs)
            if path is None:
                return None
            with safe_open(path, 'pt') as file:
                dtypes |= {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        return str_to_torch_dtype.get(dtypes.pop()) if len(dtypes) == 1 else None

    return _load(found, llm, revision)


def load_encoder(name: str, option: str):
    """A text encoder without a head. Raises UsageError, which names `option`, for an encoder-decoder."""
    from transformers import AutoModel

    model, info = _load(AutoModel.from_pretrained, name, None, option, output_loading_info=True)
    # Many encoders have no pooler, and none is used.
    missing = [key for key in info['missing_keys'] if not key.startswith('pooler.')]
    if missing:
        raise UsageError(
            f'{option} {name}: its weights do not belong to its config.json ({missing[0]}, for one, is missing); '
            'take both from the same model.'
        )
    if model.config.is_encoder_decoder:
        raise UsageError(
            f'{option} {name} is an encoder-decoder ({model.config.model_type}); '
            'give an encoder such as facebook/contriever.'
        )
    return model


def _load(loader, llm: str, revision: str | None, option: str = '--llm', **kwargs):
    source = resolve(llm, option)
    local = os.path.isdir(source) or not hub_answers()
    try:
        return loader(source, revision=revision or 'main', local_files_only=local, **kwargs)
    except Exception as error:  # the readers of damaged files raise anything, even a bare Exception
        raise UsageError(_explain(llm, source, revision, error, option)) from error


@lru_cache(maxsize=1)
def hub_answers() -> bool:
    """Whether the Hugging Face hub can be reached, asked once with a short timeout."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # of the HTTP library, which is not the same one in all versions of huggingface_hub
        return False
    return True


def _explain(llm: str, source: str, revision: str | None, error: Exception, option: str) -> str:
    """The sentence for an exception of a library."""
    kind, other = ('a causal LM', DEMO) if option == '--llm' else ('a text encoder', 'llm')
    reason = ' '.join(str(error).split())[:200]
    if os.path.isdir(source):
        if _only_sentencepiece(Path(source)) and importlib.util.find_spec('sentencepiece') is None:
            return f"{option} {llm}: its tokenizer.model needs sentencepiece: pip install 'spt_parlai[sentencepiece]'."
        return f'{option} {llm}: the folder could not be loaded as {kind} ({reason}); restore it, or give another one.'
    if 'gated' in reason:
        return (
            f'{option} {llm} is gated: accept its licence at https://huggingface.co/{llm} and log in with '
            '`hf auth login`.'
        )
    at = f' at revision {revision}' if revision else ''
    return (
        f'{option} {llm}{at} is not in the local Hugging Face cache and could not be downloaded from huggingface.co '
        f'({type(error).__name__}); check the id and the network, or give a local folder ({option} FOLDER) or '
        f'{option} {other}.'
    )


def _only_sentencepiece(folder: Path) -> bool:
    return (folder / 'tokenizer.model').exists() and not (folder / 'tokenizer.json').exists()
