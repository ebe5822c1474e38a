"""What a model file holds of a training run, for an LLM of which every process trains a share.

The file has the whole weights, as ever. The tensors of the optimizer, and accumulated gradients, are in a folder beside
it (`checkpoints.shards`), under names such as `exp_avg|unit3`: of a unit of the sharding, or of a weight in none. The
entry `shards` of the file says where each weight begins in its unit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from spt_parlai.checkpoints import shards
from spt_parlai.checkpoints.files import damage_explained
from spt_parlai.model.sharded_tuning import TunedShares

_GRADIENT = 'gradient'
_PREFIX = 'tuned.'  # of the LLM's weights in a model file

_States = dict[str, dict[str, Any]]
"""Name of what trains, in the order of the parameters → name of a state of the optimizer, or `_GRADIENT` → its value"""


def move_to_folder(states: dict[str, Any], tuned: TunedShares, folder: Path) -> dict[str, Any]:
    """Write the large states of an agent, and return the others; all processes call this together."""
    found = _states_of(states, tuned.trained_names())
    large, shapes = {}, dict(zip(found, (parameter.shape for parameter in tuned.parameters()), strict=True))
    for name, of_name in found.items():
        for kind in [kind for kind, value in of_name.items() if _is_large(value, shapes[name])]:
            large[f'{kind}|{name}'] = of_name.pop(kind)
    if 0 in dist.get_process_group_ranks(tuned.voters):  # with `hybrid`, other machines have the same
        shards.write(folder, *_divided(large, tuned), tuned.voters)
    left = {**_with(states, found), 'shards': {'folder': folder.name, 'places': tuned.places()}}
    if 'accumulated' in left:
        left['accumulated']['gradients'] = [None] * len(tuned.names)
    return left


def for_shares(path: str, states: dict[str, Any], tuned: TunedShares) -> dict[str, Any]:
    """Return the states of a model file, written with or without shards, as those of this process's shares.

    All processes call this together.

    :raises UsageError: if the folder of the shards is missing or damaged.
    """
    if 'shards' not in states:
        with damage_explained(path):
            whole = _states_of(states, [name.removeprefix(_PREFIX) for name in states['model']])
            return _with(states, {name: _share_of(name, whole, tuned) for name in tuned.trained_names()})
    folder = Path(path).with_name(states['shards']['folder'])
    shapes = dict(zip(tuned.trained_names(), (parameter.shape for parameter in tuned.parameters()), strict=True))
    with damage_explained(path):
        if states['shards']['places'] != tuned.places():
            raise ValueError('its weights have other places')
        found = _states_of(states, list(shapes))
    with damage_explained(folder):
        large = {key: torch.zeros(shapes[_name(key)]) for key in shards.shapes_in(folder)}
        shards.read(folder, *_divided(large, tuned), tuned.voters)
    for key, tensor in large.items():
        found[_name(key)][_kind(key)] = tensor
    return _with(states, found)


def for_whole_weights(path: str, states: dict[str, Any]) -> dict[str, Any]:
    """Return the states of a model file, written with or without shards, as those of whole weights.

    :raises UsageError: if the folder of the shards is missing or damaged.
    """
    if 'shards' not in states:
        return states
    folder, places = Path(path).with_name(states['shards']['folder']), states['shards']['places']
    weights = {name.removeprefix(_PREFIX): tensor for name, tensor in states['model'].items()}
    with damage_explained(path):
        in_units = {weight for unit in places.values() for weight in unit}
        trained = _states_of(states, [*places, *(name for name in weights if name not in in_units)])
    with damage_explained(folder):
        large = {key: torch.zeros(shape) for key, shape in shards.shapes_in(folder).items()}
        shards.read(folder, large, {}, None)
        for key, tensor in large.items():
            trained[_name(key)][_kind(key)] = tensor
        found: _States = {name: {} for name in weights}
        for name, of_name in trained.items():
            for weight, start in places.get(name, {name: 0}).items():
                own = slice(start, start + weights[weight].numel())
                for kind, value in of_name.items():
                    if f'{kind}|{name}' in large:
                        value = value.flatten()[own].view(weights[weight].shape)
                    found[weight][kind] = copy.deepcopy(value)  # an optimizer counts each weight's steps in place
    return _with(states, found)


def _states_of(states: dict[str, Any], names: list[str]) -> _States:
    """Return what the states hold for each trained tensor. names: of these, in the order of the parameters."""
    found: _States = {name: {} for name in names}
    for i, of_optimizer in states.get('optimizer', {}).get('state', {}).items():
        found[names[i]].update(of_optimizer)
    for name, gradient in zip(names, states.get('accumulated', {}).get('gradients', ()), strict=False):
        if gradient is not None:
            found[name][_GRADIENT] = gradient
    return found


def _with(states: dict[str, Any], found: _States) -> dict[str, Any]:
    """Return the states with others for the trained tensors."""
    result = dict(states)
    if 'optimizer' in states:
        (group,) = states['optimizer']['param_groups']
        of_optimizer = [{k: v for k, v in of_name.items() if k != _GRADIENT} for of_name in found.values()]
        result['optimizer'] = {
            'state': {i: of_name for i, of_name in enumerate(of_optimizer) if of_name},
            'param_groups': [{**group, 'params': [*range(len(found))]}],
        }
    if 'accumulated' in states:
        gradients = [of_name.get(_GRADIENT) for of_name in found.values()]
        result['accumulated'] = {**states['accumulated'], 'gradients': gradients}
    return result


def _share_of(name: str, whole: _States, tuned: TunedShares) -> dict[str, Any]:
    """Return the states of one trained tensor of this process. whole: those of all weights."""
    if name not in tuned.units:
        return whole[name]
    found: dict[str, Any] = {}
    for weight in tuned.places()[name]:
        for kind, value in whole[weight].items():
            if kind not in found:
                large = _is_large(value, tuned.names[weight].shape)
                found[kind] = tuned.share_of(name, partial(_state, whole, kind, tuned)) if large else value
    return found


def _state(whole: _States, kind: str, tuned: TunedShares, weight: str) -> Tensor:
    return whole[weight].get(kind, torch.zeros(tuned.names[weight].shape))


def _divided(large: dict[str, Tensor], tuned: TunedShares) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (the tensors of weights in no unit, those of units as `checkpoints.shards` takes them)."""
    whole = {key: tensor for key, tensor in large.items() if _name(key) not in tuned.units}
    return whole, {key: (large[key], *tuned.blocks(_name(key))) for key in large if key not in whole}


def _is_large(value: Any, shape: Iterable[int]) -> bool:
    return torch.is_tensor(value) and value.shape == shape


def _kind(key: str) -> str:
    return key.split('|', 1)[0]


def _name(key: str) -> str:
    return key.split('|', 1)[1]
