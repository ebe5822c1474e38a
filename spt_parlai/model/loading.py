"""Load an LM onto its device, and check that the method works with it.

Soft prompts, padding and cached decoding need an LM that runs from input embeddings, looks at no later token and keeps
a plain key-value cache, and they share batches with rows of other lengths. Every LM is run once on a few short rows to
check this, so that an unsuitable one is refused before it trains.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spt_parlai.hub import load_causal_lm, load_config, stored_dtype
from spt_parlai.model.causal_lm import CausalLM, HuggingFaceLM, input_device
from spt_parlai.model.sharding import shard

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
PLACEMENTS = ('auto', 'balanced')

_NEEDED = ('inputs_embeds', 'attention_mask', 'past_key_values')
_WITHOUT_POSITIONS = ('bloom', 'mpt')  # ALiBi depends on distances alone, which padding does not change
_TRIAL_LENGTH, _SHORT = 8, 3  # tokens of the trial's rows
_TOLERANCE = 0.05  # of the largest logit: far above rounding in any dtype, far below the effect of another input


def load_llm(
    llm: str,
    revision: str | None = None,
    dtype: str = 'auto',
    device: torch.device | str = 'cpu',
    device_map: str | dict | None = None,
    quantization: Any = None,
    sharding: str = 'none',
) -> CausalLM:
    """Load `llm` and freeze it.

    :param llm: a Hugging Face id, a folder, or `demo`.
    :param dtype: a name in `DTYPES`, or `auto`: float32 on a CPU, on a GPU the dtype in which the weights are stored.
    :param device_map: accelerate's placement, see `read_device_map`; None: all on `device`.
    :param quantization: see `quantization_config`.
    :param sharding: how its weights are divided among the processes, see `sharding.shard`.
    :raises UsageError: for files that cannot be loaded.
    :raises ValueError: for an LM that the method does not work with.
    """
    load_config(llm, revision)  # refuses encoder-decoders before any weight is read
    device = torch.device(device)
    kwargs: dict[str, Any] = {'dtype': _dtype(dtype, device)}
    if device_map is not None:
        kwargs['device_map'] = device_map
    if quantization is not None:
        kwargs['quantization_config'] = quantization
        kwargs.setdefault('device_map', {'': str(device)})
    widened = None
    if sharding != 'none' and kwargs['dtype'] == torch.float32 and (stored := stored_dtype(llm, revision)):
        widened, kwargs['dtype'] = torch.float32, stored  # so the weights stay in their file until their layer's turn
    lm = load_causal_lm(llm, revision, **kwargs)
    if sharding != 'none':
        shard(lm, sharding, device, widened)
    return freeze(lm if 'device_map' in kwargs else lm.to(device))


def _dtype(name: str, device: torch.device) -> torch.dtype | str:
    if name != 'auto':
        return DTYPES[name]
    return torch.float32 if device.type == 'cpu' else 'auto'


def read_device_map(value: str) -> str | dict | None:
    """Return where accelerate should place the LM's layers: `none`, `auto`, `balanced`, or the path of a JSON file.

    :raises ValueError: for anything else, and without accelerate.
    """
    if value == 'none':
        return None
    if importlib.util.find_spec('accelerate') is None:
        raise ValueError('this needs accelerate: pip install accelerate')
    if value in PLACEMENTS:
        return value
    path = Path(value)
    if not path.is_file():
        raise ValueError('there is no such file; give none, auto, balanced, or the path of a JSON file')
    try:
        placement = json.loads(path.read_text(encoding='utf-8-sig'))
    except ValueError as error:
        raise ValueError(f'the file is not valid JSON ({error}); give one that is') from error
    if not isinstance(placement, dict) or not placement:
        raise ValueError('the file must hold an object of module names and devices, e.g. {"": 0}')
    return placement


def quantization_config(bits: str, dtype: str, device: torch.device | str) -> Any:
    """Return the configuration for weights of `8bit` or `4bit` through bitsandbytes; None for `none`.

    :param dtype, device: as for `load_llm`.
    :raises ValueError: for weights that gradients cannot pass through on this device, and without bitsandbytes.
    """
    if bits == 'none':
        return None
    if importlib.util.find_spec('bitsandbytes') is None:
        raise ValueError("this needs bitsandbytes: pip install 'spt_parlai[quantization]'")
    if bits == '4bit' and torch.device(device).type == 'cpu':
        raise ValueError("this needs a GPU, because bitsandbytes' CPU kernels cannot be trained through; use 8bit")
    from transformers import BitsAndBytesConfig

    logging.getLogger('bitsandbytes.autograd._functions').setLevel(logging.ERROR)  # it logs a line for every cast
    if bits == '8bit':
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = _dtype(dtype, torch.device(device))
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype=compute if isinstance(compute, torch.dtype) else torch.bfloat16
    )


# ---- which LMs are suitable ---------------------------------------------------------------------------


def check_class(lm: HuggingFaceLM) -> None:
    """Refuse an LM whose class already shows that it is unsuitable.

    :raises ValueError: naming the class and what it lacks.
    """
    parameters = inspect.signature(lm.forward).parameters
    lacking = [name for name in _NEEDED if name not in parameters]
    if 'position_ids' not in parameters and lm.config.model_type not in _WITHOUT_POSITIONS:
        lacking.append('position_ids')
    if lm.get_output_embeddings() is None:
        raise _refusal(lm, 'has no output projection, so it is no causal LM for this method')
    if getattr(lm, '_is_stateful', False):
        raise _refusal(lm, 'is recurrent, and its state cannot be searched like a key-value cache')
    if lacking:
        raise _refusal(lm, f'takes no {", ".join(lacking)}, which soft prompts and cached decoding need')


def freeze(lm: HuggingFaceLM) -> CausalLM:
    """Freeze an LM, if a few short rows show that it is suitable.

    :raises ValueError: for an LM that does not run from embeddings, or that computes something else from them than from
        ids, for padded rows or with its cache.
    """
    check_class(lm)
    lm.eval()
    ids = _trial_ids(lm)  # [2, 8]
    try:
        with torch.no_grad():
            plain = lm(input_ids=ids).logits  # [2, 8, V]
            frozen = CausalLM(lm)
            words = frozen.embed(ids)
            mixed = (words[:1] + words[:1].flip(1)) / 2  # like a soft prompt, of no words
            padded = torch.cat([mixed[:, _SHORT:], words[:1, :_SHORT]], dim=1)
            rows = torch.cat([words, mixed, padded])
            mask = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
            mask[3, : _TRIAL_LENGTH - _SHORT] = False
            first, cache = frozen.prefill(rows[:, :-1], mask[:, :-1])  # [4, V]
            ends = torch.cat([ids[:, -1], ids[:1, -1], ids[:1, _SHORT - 1]])
            searchable = _is_key_value(cache)
            second = frozen.decode(ends[:, None], mask, cache)[0][:, 0] if searchable else first
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise _refusal(lm, f'does not run from input embeddings ({reason})') from error
    if _differ(plain[0, :_SHORT], plain[1, :_SHORT]):
        raise _refusal(lm, 'looks ahead at later tokens, so it is no causal LM')
    if _differ(plain[:, -2], first[:2]):
        raise _refusal(lm, 'computes something else from word embeddings than from words')
    if not searchable:
        raise _refusal(lm, 'keeps no plain key-value cache that a search could reorder')
    if _differ(plain[:, -1], second[:2]):
        raise _refusal(lm, 'computes something else with its key-value cache than without')
    if _differ(plain[0, _SHORT - 2 : _SHORT], torch.stack([first[3], second[3]])):
        raise _refusal(lm, 'computes something else for a row beside a longer one than for the row alone')
    return frozen


def _trial_ids(lm: HuggingFaceLM) -> Tensor:
    """Token ids int64 [2, 8]: two rows that share their first three tokens, without the LM's padding token."""
    padding = getattr(lm.config.get_text_config(decoder=True), 'pad_token_id', None)
    ids = [i for i in range(2 * _TRIAL_LENGTH) if i != padding]
    rows = [ids[:_TRIAL_LENGTH], [*ids[:_SHORT], *ids[_SHORT - _TRIAL_LENGTH :]]]
    return torch.tensor(rows, device=input_device(lm))


def _differ(a: Tensor, b: Tensor) -> bool:
    within = (a.float() - b.float().to(a.device)).abs().max() <= _TOLERANCE * a.float().abs().max()
    return not within  # so that NaN differs, too


def _is_key_value(cache) -> bool:
    from transformers.cache_utils import DynamicCache, DynamicLayer

    return type(cache) is DynamicCache and all(
        isinstance(layer, DynamicLayer)
        and not hasattr(layer, 'recurrent_states')
        and not type(layer).__module__.startswith('transformers.models.')  # MiniMax M3's own takes padding for tokens
        for layer in cache.layers
    )


def _refusal(lm: HuggingFaceLM, why: str) -> ValueError:
    way_out = 'choose a decoder-only attention model such as an OPT, a Llama or a GPT-2'
    return ValueError(f'{type(lm).__name__} {why}; {way_out}')
