"""A frozen LM whose weights are divided among processes: each holds a share, and all of a layer only while it runs.

The weights of a layer, of the word embeddings or of the head are one unit. A process that needs a unit gathers it, and
so overwrites the unit that it gathered before. A gather needs every process, but processes have different work: other
numbers of batches, micro-batches, decoding steps or dialogues. Therefore each gather begins with a vote:

1. A process that needs a unit says which one; one that waits at another collective says that it needs none.
2. All gather the unit of the smallest number. Whoever needs it goes on to compute; the others vote again.
3. If nobody needs a unit, the collective at which all wait begins.

So no process waits for ever. A process computes, which ends, or votes; in each vote one that needs a unit gets it; and
as without sharding all processes come to the same collectives in the same order. Units are numbered in the order of a
forward pass and on through the backward pass, so that who is behind catches up and then shares the gathers of the rest.

torch's `fully_shard` gathers without a vote, so it needs the same layers in the same order from every process. It also
takes neither a head that shares its weights with the word embeddings nor one whose weights are used without its
`forward`, as the log-probabilities of the targets use them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import distributed_c10d as c10d

SHARDINGS = ('none', 'full', 'hybrid')

# Those of this module, because `parlai_hooks` lets the others run along; torch 2.13 gives one another name.
_all_gather = getattr(c10d, 'all_gather_single', None) or c10d.all_gather_into_tensor

_ALIGNED = 64  # bytes: where torch's allocators let a tensor begin
_NONE = 2**62  # the vote of a process that needs no unit

# One that Python's garbage collection ends may wait for its own threads for ever.
_groups_of_a_run: list[Any] = []

_current: Sharding | None = None  # of the LM that was loaded last; no other one runs


def run_along() -> None:
    """Take part in the gathers of the other processes until none needs a unit; before any other collective."""
    if _current is not None:
        _current.run_along()


def need(module: nn.Module) -> None:
    """Gather the weights of a module that is about to be used; without sharding they are there."""
    if (unit := getattr(module, '_unit', None)) is not None:
        unit.sharding.need(unit)


def weight_bytes(lm: nn.Module) -> int:
    """Bytes of the weights that this process holds: its share, and the largest unit while that runs."""
    units: set[Any] = {module._unit for module in lm.modules() if hasattr(module, '_unit')}
    whole = sum(p.numel() * p.element_size() for p in lm.parameters() if not hasattr(p, '_in_unit'))
    return whole + sum(len(unit.share) for unit in units) + max((unit.size for unit in units), default=0)


def shard(lm: Any, kind: str, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Divide the weights of a frozen LM; every process calls this at the same time.

    Unit after unit moves to the device. Weights that are mapped from their file until then, which is how transformers
    leaves those whose dtype stays, are never all in the memory of one process.

    :param lm: a `…ForCausalLM` of transformers.
    :param device: that of this process; dtype: of all weights; None: as they are.
    :param kind: `full`: over all processes; `hybrid`: over the processes of each machine.
    :raises ValueError: for an LM without layers that can be divided.
    """
    global _current
    run_along()
    _current = Sharding(lm, *_groups(kind), device, dtype)
    lm.to(device=device, dtype=dtype)


def forget() -> None:
    """Let no process vote any more, because the groups of processes end."""
    global _current
    _current = None


def _groups(kind: str) -> tuple[Any, Any]:
    """The processes that divide the weights among them: (group for the gathers, group for the votes)."""
    machines: list[Any] = [0] * dist.get_world_size()
    if kind == 'hybrid':
        dist.all_gather_object(machines, socket.gethostname())
    mine: tuple[Any, Any] = (None, None)
    for machine in dict.fromkeys(machines):  # every process must make every group
        ranks = [rank for rank, other in enumerate(machines) if other == machine]
        groups = dist.new_group(ranks), dist.new_group(ranks, backend='gloo')
        _groups_of_a_run.extend(groups)
        if dist.get_rank() in ranks:
            mine = groups
    return mine


class _Unit:
    """Weights that are gathered together, one after the other in bytes.

    size: their bytes, a multiple of the number of processes. share: uint8 [size / processes], what this process holds.
    """

    share: Tensor

    def __init__(self, sharding: Sharding, parameters: Iterable[nn.Parameter], dtype: torch.dtype | None, parts: int):
        self.sharding, self.number = sharding, len(sharding.units)
        self.places: list[tuple[nn.Parameter, torch.dtype, int]] = []  # where each begins
        end = 0
        for parameter in parameters:
            self.places.append((parameter, dtype or parameter.dtype, end))
            end += -(-parameter.numel() * self.places[-1][1].itemsize // _ALIGNED) * _ALIGNED
        self.size = -(-end // (parts * _ALIGNED)) * parts * _ALIGNED

    def divide(self, space: Tensor, rank: int, parts: int) -> None:
        """Move the weights into a space for one unit, uint8 [≥ size], and keep a copy of a share."""
        for parameter, dtype, start in self.places:
            view = space[start : start + parameter.numel() * dtype.itemsize].view(dtype).view(parameter.shape)
            parameter.data = view.copy_(parameter.data)
            parameter._in_unit = True  # type: ignore[attr-defined]
        self.share = space[: self.size].view(parts, -1)[rank].clone()


class Sharding:
    """The units of an LM, and the space in which the weights of one of them are at a time.

    All weights are views of that space, so that nothing is allocated while the LM runs.

    :param group: the processes that divide the weights among them; `voters`: the same, over gloo.
    :param device, dtype: see `shard`.
    """

    def __init__(self, lm: Any, group: Any, voters: Any, device: torch.device, dtype: torch.dtype | None = None):
        from transformers.modeling_layers import GradientCheckpointingLayer

        self.group, self.voters = group, voters
        self.units: list[_Unit] = []
        self._gathered: _Unit | None = None
        layers = [[module] for module in lm.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            raise ValueError(f'{type(lm).__name__} has no layers that can be divided; leave it out')
        rank, parts = dist.get_rank(group), dist.get_world_size(group)
        words, head = lm.get_input_embeddings(), lm.get_output_embeddings()
        tied = head.weight is words.weight
        for modules in [[words, head], *layers] if tied else [[words], *layers, [head]]:
            parameters = {id(p): p for module in modules for p in module.parameters()}
            unit = _Unit(self, parameters.values(), dtype, parts)
            self.units.append(unit)
            for module in modules:
                module._unit = unit
                module.register_forward_pre_hook(lambda module, _: need(module))
                module.register_forward_hook(partial(_needed_backward, unit))
        self._space = torch.zeros(max(unit.size for unit in self.units), dtype=torch.uint8, device=device)
        for unit in self.units:
            unit.divide(self._space, rank, parts)

    def need(self, unit: _Unit, backward: bool = False) -> None:
        """Gather a unit unless it is there, and meanwhile whatever others need first."""
        vote = 2 * len(self.units) - 1 - unit.number if backward else unit.number
        while self._gathered is not unit:
            self._vote(vote)

    def run_along(self) -> None:
        while self._vote(_NONE):
            pass

    def _vote(self, number: int) -> bool:
        """Gather the unit of the smallest number that any process votes for; returns whether there is one."""
        votes = torch.tensor([number])
        c10d.all_reduce(votes, dist.ReduceOp.MIN, group=self.voters)
        number = int(votes)
        if number == _NONE:
            return False
        self._gathered = unit = self.units[min(number, 2 * len(self.units) - 1 - number)]
        self._gather(self._space[: unit.size].data, unit.share)
        return True

    def _gather(self, whole: Tensor, share: Tensor) -> None:
        """Fill `whole`, uint8 [size], with all processes' shares.

        whole: the `data` of a view, which has a version of its own: for autograd, the weights that it has saved are
        those that come back.
        """
        if dist.get_backend(self.group) != 'gloo':
            _all_gather(whole, share, group=self.group)
            return
        # gloo's own gather allocates all of it once more, in threads that keep their memory
        parts = whole.view(-1, len(share))
        parts[dist.get_rank(self.group)].copy_(share)
        sent = [c10d.broadcast(part, group=self.group, group_src=i, async_op=True) for i, part in enumerate(parts)]
        for work in sent:
            work.wait()


def _needed_backward(unit: _Unit, module: nn.Module, inputs: Any, output: Any) -> None:
    """After a forward pass: let the gradient gather the unit again as soon as it has come to the module's outputs."""
    for tensor in output if isinstance(output, tuple) else (output,):
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            tensor.register_hook(partial(_gather_for_gradient, unit))


def _gather_for_gradient(unit: _Unit, gradient: Tensor) -> None:
    unit.sharding.need(unit, backward=True)


CollectiveOf = Callable[..., Any]


def after_running_along(collective: CollectiveOf) -> CollectiveOf:
    """A collective of torch's that begins when no process needs a unit any more."""

    def call(*args: Any, **kwargs: Any) -> Any:
        run_along()
        return collective(*args, **kwargs)

    return call
