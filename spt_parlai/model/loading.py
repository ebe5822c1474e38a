"""Options → a CausalLM on its device: dtype, accelerate's placement, quantized bases.

Is this an LM that soft prompts, padding and cached decoding work with? Asked once, when it is loaded.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
from pathlib import Path

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from spt_parlai.errors import UsageError
from spt_parlai.hub import load_causal_lm, load_config
from spt_parlai.model.causal_lm import CausalLM, input_device

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
PLACEMENTS = ('auto', 'balanced')


def load_llm(
    llm: str,
    revision: str | None = None,
    dtype: str = 'auto',
    device: torch.device | str = 'cpu',
    device_map: str = 'none',
    quantization: str = 'none',
) -> CausalLM:
    """Load `llm` and freeze it.

    :param dtype: `auto` is float32 on a CPU, and on an accelerator the dtype the weights are stored in.
    :param device_map: `none` puts all on `device`; `auto`, `balanced` or a JSON file are accelerate's placements.
    :param quantization: `8bit` or `4bit` through bitsandbytes.
    :raises UsageError: for anything that cannot be loaded, or that the method does not work with.
    """
    load_config(llm, revision)  # refuses encoder-decoders before any weight is read
    device = torch.device(device)
    kwargs: dict = {'dtype': _dtype(dtype, device)}
    placement = _device_map(device_map)
    if placement is not None:
        kwargs['device_map'] = placement
    if quantization != 'none':
        kwargs['quantization_config'] = _quantization(quantization, kwargs['dtype'], device)
        kwargs.setdefault('device_map', {'': str(device)})
    lm = load_causal_lm(llm, revision, **kwargs)
    if 'device_map' not in kwargs:
        lm = lm.to(device)
    return freeze(llm, lm)


def _dtype(name: str, device: torch.device):
    if name != 'auto':
        return DTYPES[name]
    return torch.float32 if device.type == 'cpu' else 'auto'


def _device_map(value: str):
    if value == 'none':
        return None
    if importlib.util.find_spec('accelerate') is None:
        raise UsageError(f'--llm-device-map {value} needs accelerate: pip install accelerate.')
    if value in PLACEMENTS:
        return value
    path = Path(value)
    if not path.is_file():
        raise UsageError(
            f'--llm-device-map {value}: give none, auto, balanced, or the path of a JSON file (no such file).'
        )
    try:
        placement = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UsageError(f'--llm-device-map {value} is not valid JSON ({error}).') from error
    if not isinstance(placement, dict) or not placement:
        raise UsageError(f'--llm-device-map {value} must hold an object of module names and devices, e.g. {{"": 0}}.')
    return placement


def _quantization(bits: str, dtype, device: torch.device):
    if importlib.util.find_spec('bitsandbytes') is None:
        raise UsageError(f"--llm-quantization {bits} needs bitsandbytes: pip install 'spt_parlai[quantization]'.")
    if bits == '4bit' and device.type == 'cpu':
        raise UsageError(
            "--llm-quantization 4bit needs a GPU: bitsandbytes' CPU kernels cannot be trained through; 8bit can."
        )
    from transformers import BitsAndBytesConfig

    logging.getLogger('bitsandbytes.autograd._functions').setLevel(logging.ERROR)  # a line for every product that casts
    if bits == '8bit':
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=compute)


NEEDED = ('inputs_embeds', 'attention_mask', 'past_key_values')
WITHOUT_POSITIONS = ('bloom', 'mpt')  # ALiBi: distances alone count, and padding changes none
TRIAL = ((0, 1, 2), (0, 1, 3))  # token ids; the rows differ in their last token alone
TOLERANCE = 0.05  # of the largest logit: far above rounding in any dtype, far below what another input makes
WAY_OUT = 'choose a decoder-only attention model such as an OPT, a Llama or a GPT-2.'


def check_class(llm: str, lm: torch.nn.Module) -> None:
    """Refuse what cannot work by its class alone.

    :raises UsageError: naming `llm` and what it lacks.
    """
    parameters = inspect.signature(lm.forward).parameters
    lacking = [name for name in NEEDED if name not in parameters]
    if 'position_ids' not in parameters and lm.config.model_type not in WITHOUT_POSITIONS:
        lacking.append('position_ids')
    if lm.get_output_embeddings() is None:
        raise _refusal(llm, lm, 'has no output projection, so it is no causal LM for this method')
    if getattr(lm, '_is_stateful', False):
        raise _refusal(llm, lm, 'is recurrent, and its state cannot be searched like a key-value cache')
    if lacking:
        raise _refusal(llm, lm, f'takes no {", ".join(lacking)}, which soft prompts and cached decoding need')


def freeze(llm: str, lm: torch.nn.Module) -> CausalLM:
    """A suitable LM, frozen; it is run on two rows of three tokens to see that it is one.

    :raises UsageError: for an LM that fails from embeddings, or computes there what it does not from token ids.
    """
    check_class(llm, lm)
    lm.eval()
    ids = torch.tensor(TRIAL, device=input_device(lm))
    try:
        with torch.no_grad():
            plain = lm(input_ids=ids).logits  # [2, 3, V]
            frozen = CausalLM(lm)
            words = frozen.embed(ids)
            rows = torch.cat([words, words.mean(0, keepdim=True)])  # the third is of no words, as a soft prompt is
            last, cache = frozen.prefill(
                rows, torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
            )  # [3, V]
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise _refusal(llm, lm, f'does not run from input embeddings ({reason})') from error
    if _differ(plain[0, :2], plain[1, :2]):
        raise _refusal(llm, lm, 'looks ahead at later tokens, so it is no causal LM')
    if _differ(last[:2], plain[:, -1]):
        raise _refusal(llm, lm, 'computes something else from word embeddings than from words')
    if type(cache) is not DynamicCache or not all(map(_is_key_value, cache.layers)):
        raise _refusal(llm, lm, 'keeps no plain key-value cache that a search could reorder')
    return frozen


def _differ(a: Tensor, b: Tensor) -> bool:
    return bool((a.float() - b.float().to(a.device)).abs().max() > TOLERANCE * a.float().abs().max())


def _is_key_value(layer) -> bool:
    return isinstance(layer, DynamicLayer) and not hasattr(layer, 'recurrent_states')


def _refusal(llm: str, lm: torch.nn.Module, why: str) -> UsageError:
    return UsageError(f'--llm {llm}: {type(lm).__name__} {why}; {WAY_OUT}')
