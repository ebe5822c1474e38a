"""The size of an LLM and what it keeps for the backward pass, from its configuration, without a weight."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from spt_parlai.errors import UsageError
from spt_parlai.planning.known import SHAPES

_TRIAL = 32  # tokens


@dataclass(frozen=True)
class Shape:
    """An LLM's numbers of parameters and bytes.

    parameters: all; layer, embeddings, head: of one layer and of these modules (head: 0 if it shares the word
    embeddings' weights); kept: bytes that one token of a row keeps in one layer for the backward pass; cached: bytes of
    one token's keys and values in one layer; itemsize: bytes of a number.
    """

    name: str
    source: str
    parameters: int
    layers: int
    layer: int
    embeddings: int
    head: int
    vocabulary: int
    hidden_size: int
    kept: float
    cached: int
    itemsize: int

    @property
    def bytes(self) -> int:
        return self.parameters * self.itemsize

    @property
    def largest_unit(self) -> int:
        """Bytes of the largest part that sharding gathers at a time."""
        return max(self.layer, self.embeddings, self.head) * self.itemsize


def shape_of(llm: str, dtype: torch.dtype) -> Shape:
    """Measure one and two layers of the LLM as tensors without data; all layers are alike.

    :raises UsageError: if its configuration is not at hand.
    """
    config, source = _config(llm)
    one, two = (_thin(config, layers, dtype) for layers in (1, 2))
    layers = config.get_text_config(decoder=True).num_hidden_layers
    layer = two['parameters'] - one['parameters']
    return Shape(
        llm,
        source,
        one['parameters'] + (layers - 1) * layer,
        layers,
        layer,
        one['embeddings'],
        one['head'],
        one['vocabulary'],
        one['hidden'],
        (two['kept'] - one['kept']) / _TRIAL,
        _cached(config, dtype.itemsize),
        dtype.itemsize,
    )


def _config(llm: str) -> tuple[Any, str]:
    from transformers import AutoConfig

    from spt_parlai.hub import load_config

    if llm in SHAPES:
        known = dict(SHAPES[llm])
        return AutoConfig.for_model(known.pop('model_type'), **known), 'a shape inside the package'
    return load_config(llm), 'its configuration'


def _thin(config: Any, layers: int, dtype: torch.dtype) -> dict[str, int]:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    thin = copy.deepcopy(config)
    text = thin.get_text_config(decoder=True)
    text.num_hidden_layers = layers
    if getattr(text, 'layer_types', None):
        text.layer_types = text.layer_types[:layers]
    with FakeTensorMode():
        lm = AutoModelForCausalLM.from_config(thin, dtype=dtype).eval()
        words, head = lm.get_input_embeddings(), lm.get_output_embeddings()
        known = {p.requires_grad_(False).untyped_storage()._cdata for p in lm.parameters()}
        kept: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                kept[storage._cdata] = storage.nbytes()
            return tensor

        hidden = text.hidden_size
        row = torch.zeros(1, _TRIAL, hidden, requires_grad=True)
        try:
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                lm.base_model(inputs_embeds=row.to(dtype), use_cache=False)
        except RuntimeError as error:
            raise UsageError(
                f'--llm {config.name_or_path}: {type(lm).__name__} cannot be measured ({error}).'
            ) from None
        return {
            'parameters': sum(p.numel() for p in lm.parameters()),
            'embeddings': words.weight.numel(),
            'head': 0 if head.weight is words.weight else head.weight.numel(),
            'vocabulary': head.weight.shape[0],
            'hidden': hidden,
            'kept': sum(kept.values()),
        }


def _cached(config: Any, itemsize: int) -> int:
    text = config.get_text_config(decoder=True)
    heads = text.num_attention_heads
    groups = getattr(text, 'num_key_value_heads', None) or heads
    width = getattr(text, 'head_dim', None) or text.hidden_size // heads
    return 2 * groups * width * itemsize
