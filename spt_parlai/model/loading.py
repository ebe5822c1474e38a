"""Options → a FrozenLM on its device: dtype, accelerate's placement, quantized bases."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path

import torch

from spt_parlai.errors import UsageError
from spt_parlai.hub import load_causal_lm, load_config
from spt_parlai.model.frozen_lm import FrozenLM
from spt_parlai.model.suitability import freeze

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
PLACEMENTS = ('auto', 'balanced')


def load_frozen_lm(
    llm: str,
    revision: str | None = None,
    dtype: str = 'auto',
    device: torch.device | str = 'cpu',
    device_map: str = 'none',
    quantization: str = 'none',
) -> FrozenLM:
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
