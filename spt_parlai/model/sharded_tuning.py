"""All weights of an LM that is divided among processes train: with their gradients and the optimizer's states.

Each process trains its shares. In a forward pass the weights of a unit are a function of the share: they are gathered.
Its gradient is the sum of all processes' gradients of the unit, of which each process keeps that of its share. The sum
is taken as soon as a unit's gradient is there, also of a process that has no gradient of it at that moment. Therefore
it goes straight into `grad` of the share, scaled as the mean over processes and batches of an update needs it.

A few weights are in no unit, such as those of position embeddings and of the last norm. Each process has them all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spt_parlai.model.causal_lm import CausalLM
from spt_parlai.model.sharding import ALIGNED, Sharding, Unit, run_along

Places = dict[str, int]
"""Name of a weight → where it begins in its unit, in values."""

BLOCK = ALIGNED // 4  # values; a process has whole blocks of a unit, the first ones the first process


class TunedShares(nn.Module):
    """The trained shares of a sharded LM, and its weights that are in no unit.

    Its `state_dict`, which all processes must call together, holds the whole weights under their own names in the first
    process, and nothing in the others. `load_state_dict` takes this process's part of whole weights.

    :param llm: the LM, of float32 weights.
    :param sharding: how it is divided.
    :param batches: of an update, whose mean gradient it is made with.
    """

    def __init__(self, llm: CausalLM, sharding: Sharding, batches: int = 1):
        super().__init__()
        self._sharding = sharding
        self.voters = sharding.voters
        sharding.gradient_scale = 1 / (dist.get_world_size(sharding.group) * batches)
        self.replicas = sharding.group_of_replicas()
        self.names = dict(llm.named_weights())  # all, in the LM's order
        names = {id(parameter): name for name, parameter in self.names.items()}
        self.units: dict[str, tuple[Unit, Places]] = {}
        for unit in sharding.units:
            self.units[f'unit{unit.number}'] = unit, {names[id(p)]: start // 4 for p, _, start in unit.places}
            _train(unit)
            self.register_parameter(f'unit{unit.number}', unit.trained)
        for name in self.whole_names():
            self.names[name].requires_grad_()
            self.register_parameter(name.replace('.', '/'), self.names[name])

    def whole_names(self) -> list[str]:
        """The names of the weights that are in no unit."""
        return [name for name, parameter in self.names.items() if not hasattr(parameter, '_in_unit')]

    def trained_names(self) -> list[str]:
        """What each of `parameters()` is called: `unit0` and so on, and the names of the weights in no unit."""
        return [*self.units, *self.whole_names()]

    def places(self) -> dict[str, Places]:
        return {name: places for name, (_, places) in self.units.items()}

    # ---- an update ------------------------------------------------------------------------------------

    def complete_gradients(self) -> None:
        """Average what the sums of the backward passes leave out; all processes call this after a batch."""
        run_along()
        for name in self.whole_names():
            dist.all_reduce(gradient := _gradient(self.names[name]))
            gradient.div_(dist.get_world_size())
        for unit, _ in self.units.values() if self.replicas is not None else ():
            dist.all_reduce(gradient := _gradient(unit.trained), group=self.replicas)
            gradient.div_(dist.get_world_size(self.replicas))

    def gradient_norm(self) -> Tensor:
        """The norm of the whole gradient, a float32 scalar that is the same in all processes."""
        own = torch.stack([_square(_gradient(unit.trained)) for unit, _ in self.units.values()]).sum()
        dist.all_reduce(own, group=self._sharding.group)
        whole = [_square(_gradient(self.names[name])) for name in self.whole_names()]
        return torch.stack([own, *whole]).sum().sqrt().float()

    def updated(self) -> None:
        """The optimizer has changed the shares."""
        self._sharding.forget_gathered()

    # ---- whole weights and shares of them -------------------------------------------------------------

    def share_of(self, name: str, whole: Callable[[str], Tensor]) -> Tensor:
        """This process's part of a unit's values. whole: name of a weight → its values, float32, of its shape."""
        unit, places = self.units[name]
        values = torch.zeros(unit.size // 4)
        for weight, start in places.items():
            values[start : start + self.names[weight].numel()] = whole(weight).flatten()
        return values.view(-1, unit.trained.numel())[dist.get_rank(self._sharding.group)]

    def blocks(self, name: str) -> tuple[int, int]:
        """(How many blocks of `BLOCK` values a unit has, how many of them this process has)."""
        unit, _ = self.units[name]
        blocks, most = unit.end // ALIGNED, unit.trained.numel() // BLOCK
        return blocks, min(max(blocks - dist.get_rank(self._sharding.group) * most, 0), most)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        found = {name: self.names[name].detach() for name in self.whole_names()}
        for unit, places in self.units.values():
            self._sharding.need(unit)
            if dist.get_rank() == 0:
                found.update((name, self.names[name].detach().cpu().clone()) for name in places)
        run_along()
        if dist.get_rank() == 0:
            destination.update((prefix + name, found[name]) for name in self.names)

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        given = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
        missing += [prefix + name for name in self.names if name not in given]
        unexpected += [prefix + name for name in given if name not in self.names]
        wrong = [n for n, p in self.names.items() if n in given and given[n].shape != p.shape]
        errors += [f'size mismatch for {prefix}{name}' for name in wrong]
        if missing or unexpected or errors:
            return
        with torch.no_grad():
            for name in self.whole_names():
                self.names[name].copy_(given[name])
            for name, (unit, _) in self.units.items():
                unit.trained.copy_(self.share_of(name, given.__getitem__))
        self.updated()

    def _apply(self, fn, recurse=True):
        return self  # the shares are where their LM is


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Its gradient; zeros for weights that nothing has used, so that every process takes the same step."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _square(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.float64).square()


def _train(unit: Unit) -> None:
    """Let the weights of a unit be a function of the share wherever gradients are needed."""
    unit.trained = nn.Parameter(unit.share.view(torch.float32))
    unit.trained.sums_its_gradient = True  # type: ignore[attr-defined]
    numbers = {id(parameter): i for i, (parameter, *_) in enumerate(unit.places)}
    for parameter, *_ in unit.places:
        parameter.requires_grad_()
    for module in unit.modules:
        owners = [
            (owner, name, parameter)
            for owner in module.modules()
            for name, parameter in owner._parameters.items()
            if parameter is not None
        ]

        def put(_module: nn.Module, _inputs: Any, owners=owners) -> None:
            if torch.is_grad_enabled():
                weights = _Gathered.apply(unit.trained, unit)
                for owner, name, parameter in owners:
                    owner._parameters[name] = weights[numbers[id(parameter)]]

        def take(_module: nn.Module, _inputs: Any, _output: Any, owners=owners) -> None:
            for owner, name, parameter in owners:
                owner._parameters[name] = parameter

        module.register_forward_pre_hook(put)
        module.register_forward_hook(take, always_call=True)


class _Gathered(torch.autograd.Function):
    """The weights of a unit, which has been gathered, as a function of the share."""

    @staticmethod
    def forward(ctx, share: Tensor, unit: Unit) -> tuple[Tensor, ...]:
        ctx.unit = unit
        return tuple(parameter.data for parameter, *_ in unit.places)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[None, None]:
        unit = ctx.unit
        whole = torch.zeros(unit.size, dtype=torch.uint8, device=gradients[0].device)
        for view, gradient in zip(unit.views(whole), gradients, strict=True):
            view.copy_(gradient)
        unit.sharding.sum_gradient(unit, whole)
        return None, None
