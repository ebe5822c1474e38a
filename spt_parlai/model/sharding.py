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

Weights that train (`sharded_tuning`) are gathered alike. A process that has the gradient of a unit votes for its sum:
all processes add their gradients, those that have none add zeros, and each keeps the sum for its share.

torch's `fully_shard` gathers without a vote, so it needs the same layers in the same order from every process, also
where a run validates and replies. It also takes neither a head that shares its weights with the word embeddings nor one
whose weights are used without its `forward`, as the log-probabilities of the targets use them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import distributed_c10d as c10d

SHARDINGS = ('none', 'full', 'hybrid')

# Those of this module, because `parlai_hooks` lets the others run along; torch 2.13 gives one another name.
_all_gather = getattr(c10d, 'all_gather_single', None) or c10d.all_gather_into_tensor
_reduce_scatter = getattr(c10d, 'reduce_scatter_single', None) or c10d.reduce_scatter_tensor

ALIGNED = 64  # bytes: where torch's allocators let a tensor begin
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


def of(lm: nn.Module) -> Sharding | None:
    """How an LM is divided; None: it is whole."""
    units: list[Any] = [module._unit for module in lm.modules() if hasattr(module, '_unit')]
    return units[0].sharding if units else None


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


class Unit:
    """Weights that are gathered together, one after the other in bytes.

    places: each weight with its dtype and where it begins; end: where the last one ends. size: `end` rounded up to the
    same number of bytes for every process. share: uint8 [size / processes], what this process holds. trained: the same
    as float32, if it trains.
    """

    share: Tensor
    trained: nn.Parameter

    def __init__(self, sharding: Sharding, modules: Sequence[nn.Module], dtype: torch.dtype | None, parts: int):
        self.sharding, self.modules, self.number = sharding, modules, len(sharding.units)
        parameters = {id(p): p for module in modules for p in module.parameters()}
        self.places: list[tuple[nn.Parameter, torch.dtype, int]] = []  # where each begins
        end = 0
        for parameter in parameters.values():
            self.places.append((parameter, dtype or parameter.dtype, end))
            end += -(-parameter.numel() * self.places[-1][1].itemsize // ALIGNED) * ALIGNED
        self.end = end
        self.size = -(-end // (parts * ALIGNED)) * parts * ALIGNED

    def divide(self, space: Tensor, rank: int, parts: int) -> None:
        """Move the weights into a space for one unit, uint8 [≥ size], and keep a copy of a share."""
        for (parameter, *_), view in zip(self.places, self.views(space), strict=True):
            parameter.data = view.copy_(parameter.data)
            parameter._in_unit = True  # type: ignore[attr-defined]
        self.share = space[: self.size].view(parts, -1)[rank].clone()

    def views(self, space: Tensor) -> list[Tensor]:
        """The weights, or their gradients, in a space for one unit, uint8 [≥ size]."""
        return [
            space[start : start + parameter.numel() * dtype.itemsize].view(dtype).view(parameter.shape)
            for parameter, dtype, start in self.places
        ]


class Sharding:
    """The units of an LM, and the space in which the weights of one of them are at a time.

    All weights are views of that space, so that nothing is allocated while the LM runs.

    :param group: the processes that divide the weights among them; `voters`: the same, over gloo.
    :param device, dtype: see `shard`.
    """

    def __init__(self, lm: Any, group: Any, voters: Any, device: torch.device, dtype: torch.dtype | None = None):
        from transformers.modeling_layers import GradientCheckpointingLayer

        self.group, self.voters = group, voters
        self.gradient_scale = 1.0  # of what each process adds to a gradient
        self.units: list[Unit] = []
        self._gathered: Unit | None = None
        layers = [[module] for module in lm.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            raise ValueError(f'{type(lm).__name__} has no layers that can be divided; leave it out')
        rank, parts = dist.get_rank(group), dist.get_world_size(group)
        words, head = lm.get_input_embeddings(), lm.get_output_embeddings()
        tied = head.weight is words.weight
        for modules in [[words, head], *layers] if tied else [[words], *layers, [head]]:
            unit = Unit(self, modules, dtype, parts)
            self.units.append(unit)
            for module in modules:
                module._unit = unit
                module.register_forward_pre_hook(lambda module, _: need(module))
                if module is not words:  # the gradient of an embedding does not depend on its weights
                    module.register_forward_hook(partial(_needed_backward, unit))
        self._space = torch.zeros(max(unit.size for unit in self.units), dtype=torch.uint8, device=device)
        for unit in self.units:
            unit.divide(self._space, rank, parts)

    def group_of_replicas(self) -> Any:
        """The processes of all machines that have the same share, with `hybrid`; None: no other has this one.

        All processes call this together.

        :raises ValueError: for machines with different numbers of processes.
        """
        if (parts := dist.get_world_size(self.group)) == dist.get_world_size():
            return None
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, dist.get_process_group_ranks(self.group))
        machines = sorted({tuple(ranks) for ranks in everyone})
        if any(len(ranks) != parts for ranks in machines):
            raise ValueError('hybrid needs as many processes on each machine where all weights train; use full')
        groups = [dist.new_group(list(ranks)) for ranks in zip(*machines, strict=True)]
        _groups_of_a_run.extend(groups)
        return groups[dist.get_rank(self.group)]

    def need(self, unit: Unit, backward: bool = False) -> None:
        """Gather a unit unless it is there, and meanwhile whatever others need first."""
        vote = self._backward(unit) if backward else unit.number
        while self._gathered is not unit:
            self._vote(vote)

    def sum_gradient(self, unit: Unit, gradient: Tensor) -> None:
        """Add this process's gradient of a trained unit, uint8 [size], to all processes' shares of it."""
        vote = self._backward(unit) + 1
        while self._vote(vote, gradient) != vote:
            pass

    def run_along(self) -> None:
        while self._vote(_NONE) != _NONE:
            pass

    def forget_gathered(self) -> None:
        """Gather anew, because the shares have changed; in all processes."""
        self._gathered = None

    def _backward(self, unit: Unit) -> int:
        """The vote for a unit in the backward pass; the next number is that for the sum of its gradient."""
        return len(self.units) + 2 * (len(self.units) - 1 - unit.number)

    def _vote(self, number: int, gradient: Tensor | None = None) -> int:
        """Do what has the smallest number that any process votes for; returns that number."""
        votes = torch.tensor([number])
        c10d.all_reduce(votes, dist.ReduceOp.MIN, group=self.voters)
        first, last = int(votes), len(self.units) - 1
        if first == _NONE:
            return first
        unit = self.units[first if first <= last else last - (first - last - 1) // 2]
        if first > last and (first - last - 1) % 2:
            self._sum(unit, gradient if first == number else None)
        else:
            self._gathered = unit
            self._gather(self._space[: unit.size].data, unit.share)
        return first

    def _sum(self, unit: Unit, gradient: Tensor | None) -> None:
        """Add the sum of all processes' gradients of a unit to this share's."""
        share = unit.trained
        if gradient is None:
            gradient = torch.zeros_like(self._space[: unit.size])
        parts = gradient.view(torch.float32).view(-1, share.numel())
        mine = parts[dist.get_rank(self.group)]
        if dist.get_backend(self.group) != 'gloo':
            mine = torch.empty_like(mine)
            _reduce_scatter(mine, parts, group=self.group)
        else:
            sent = [c10d.reduce(part, group=self.group, group_dst=i, async_op=True) for i, part in enumerate(parts)]
            for work in sent:
                work.wait()
        if share.grad is None:
            share.grad = torch.zeros_like(share)
        share.grad.add_(mine, alpha=self.gradient_scale)

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


def _needed_backward(unit: Unit, module: nn.Module, inputs: Any, output: Any) -> None:
    """After a forward pass: let the gradient gather the unit again as soon as it has come to the module's outputs."""
    for tensor in output if isinstance(output, tuple) else (output,):
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            tensor.register_hook(partial(_gather_for_gradient, unit))


def _gather_for_gradient(unit: Unit, gradient: Tensor) -> None:
    unit.sharding.need(unit, backward=True)


CollectiveOf = Callable[..., Any]


def after_running_along(collective: CollectiveOf) -> CollectiveOf:
    """A collective of torch's that begins when no process needs a unit any more."""

    def call(*args: Any, **kwargs: Any) -> Any:
        run_along()
        return collective(*args, **kwargs)

    return call
