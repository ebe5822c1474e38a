"""The weights of the LM that train: low-rank matrices beside its layers (LoRA), or all of them."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from spt_parlai.model.causal_lm import CausalLM

ALL_LINEAR = 'all-linear'


class TunedWeights(nn.Module):
    """Parameters of an LM, registered under their own names with the model around it, which is trained and saved.

    They stay where the LM has them. Their dropout is active in training mode; the LM itself always stays in eval mode.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], dropouts: Iterable[nn.Dropout] = ()):
        super().__init__()
        self._dropouts = tuple(dropouts)
        for name, parameter in named:
            *path, last = name.split('.')
            owner: nn.Module = self
            for part in path:
                if owner._modules.get(part) is None:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            parameter.requires_grad_()
            owner.register_parameter(last, parameter)
        self.train(False)

    def _apply(self, fn, recurse=True):
        return self  # if accelerate has put a layer on another device, its matrices belong there too

    def train(self, mode: bool = True):
        for dropout in self._dropouts:
            dropout.train(mode)
        return super().train(mode)


def tune_all(llm: CausalLM) -> TunedWeights:
    """All weights, each once; they must be float32."""
    return TunedWeights(llm.named_weights())


class Lora(NamedTuple):
    """What LoRA adds to a layer's output: (alpha / rank)·B·A·x.

    dropout: of x, in training; targets: names of the layers, or (`all-linear`,), or none for those that peft chooses
    for the architecture.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = ()


def add_lora(llm: CausalLM, lora: Lora) -> tuple[TunedWeights, tuple[str, ...]]:
    """Put LoRA matrices into the LM. A is random and B is zero, so until they are trained they change nothing.

    :return: (the matrices, float32; the targets, also if peft chose them).
    :raises ValueError: for targets that cannot or must not be adapted.
    """
    tuner, targets = _inject(llm, lora)
    layers = _layers(tuner)
    matrices = {id(p): p for layer in layers for p in layer.parameters() if p.requires_grad}
    for parameter in matrices.values():
        parameter.data = parameter.data.float()
    dropouts = [module for layer in layers for module in layer.modules() if isinstance(module, nn.Dropout)]
    llm.lm.eval()
    return TunedWeights([(n, p) for n, p in llm.lm.named_parameters() if id(p) in matrices], dropouts), targets


def values_per_rank(llm: CausalLM, targets: tuple[str, ...]) -> int:
    """The number of values of LoRA matrices of rank 1; those of rank r have r times as many."""
    tuner, _ = _inject(llm, Lora(rank=1, alpha=1.0, targets=targets))
    values = sum(p.numel() for layer in _layers(tuner) for p in layer.parameters() if p.requires_grad)
    tuner.unload()
    return values


def spt_values(num_prompts: int, prompt_length: int, hidden_size: int) -> int:
    """The number of values that SPT trains: the prompts, K·L·D, and two linear layers D → D."""
    return num_prompts * prompt_length * hidden_size + 2 * (hidden_size * hidden_size + hidden_size)


def nearest_rank(values: int, per_rank: int) -> int:
    """The rank, at least 1, whose matrices have the number of values nearest to `values`."""
    return max(1, (2 * values + per_rank) // (2 * per_rank))


def check_peft() -> None:
    """Check that peft is installed.

    :raises ValueError: if it is not.
    """
    if importlib.util.find_spec('peft') is None:
        raise ValueError("LoRA needs peft: pip install 'spt_parlai[peft]'")


def _inject(llm: CausalLM, lora: Lora) -> tuple[Any, tuple[str, ...]]:
    """Return (peft's `LoraModel` around the LM, the targets that it adapts)."""
    from peft import LoraConfig, LoraModel

    wanted = ALL_LINEAR if lora.targets == (ALL_LINEAR,) else list(lora.targets) or None
    config: Any = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft only multiplies by it
        lora_dropout=lora.dropout,
        target_modules=wanted,
    )
    way_out = f'give some of {", ".join(_linear_names(llm))}, or {ALL_LINEAR}'
    try:
        with warnings.catch_warnings():
            # peft warns of GPT-2's transposed weights, which it handles, and of new names.
            warnings.simplefilter('ignore')
            tuner = LoraModel(llm.lm, config, 'default')
    except ValueError as error:
        why = 'LoRA cannot adapt these' if lora.targets else 'peft knows no layers of this LM to adapt'
        raise ValueError(f'{why}; {way_out}') from error
    found = tuner.targeted_module_names
    targets = (ALL_LINEAR,) if wanted == ALL_LINEAR else tuple(sorted(config.target_modules))
    missing = [t for t in lora.targets if t != ALL_LINEAR and not any(n == t or n.endswith(f'.{t}') for n in found)]
    ends = (llm.lm.get_input_embeddings(), llm.lm.get_output_embeddings())
    if missing or any(hasattr(module, 'lora_A') for module in ends):
        tuner.unload()
        why = f'no layer is named {missing[0]}' if missing else 'word embeddings and output projection stay as they are'
        raise ValueError(f'{why}; {way_out}')
    return tuner, targets


def _layers(tuner: Any) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in tuner.model.modules() if isinstance(module, LoraLayer)]


def _linear_names(llm: CausalLM) -> list[str]:
    """The last names of the layers in the body that LoRA can adapt."""
    from transformers.pytorch_utils import Conv1D

    head = llm.lm.get_output_embeddings()
    return sorted(
        {
            name.rsplit('.', 1)[-1]
            for name, module in llm.lm.named_modules()
            if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head
        }
    )
