"""`spt plan`: a table of what fits where, and the options to use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from spt_parlai.errors import UsageError
from spt_parlai.planning.estimate import PLACEMENTS, Memory, Run, Speed, memory, speed, trained
from spt_parlai.planning.known import CARDS, GIB, NETWORKS
from spt_parlai.planning.shape import Shape, shape_of

LIBRARIES = 1.0 * GIB  # of a card, for CUDA and its libraries
REACHED = 0.35  # of a card's rate by a training step, an assumption
FLOAT32 = 1 / 15  # of the rate in bfloat16, without TF32
EXAMPLES = 131_438  # of ConvAI2's training part
_OPTION = {
    'none': '',
    'device map': '--llm-device-map auto',
    'hybrid': '--llm-sharding hybrid',
    'full': '--llm-sharding full',
}


@dataclass(frozen=True)
class Machine:
    """memory: bytes of a device; flops and network: see `estimate.speed`."""

    devices: int
    of_machine: int
    memory: float
    flops: float
    network: float


def machine(gpus: int, machines: int, card: str | None, gpu_memory: str | None, rate: float | None, network: str):
    """The devices that the options describe.

    :raises UsageError: that names the option.
    """
    if card is not None and card not in CARDS:
        raise UsageError(f'--card {card}: give one of {", ".join(CARDS)}, or --gpu-memory and --rate.')
    known = CARDS[card or 'a100-80']
    size = known.memory if gpu_memory is None else read_size(gpu_memory)
    flops = known.flops * REACHED if rate is None else rate * 1e12
    if network not in NETWORKS and not re.fullmatch(r'[0-9.]+', network):
        raise UsageError(f'--network {network}: give one of {", ".join(NETWORKS)}, or GB per second.')
    moved = NETWORKS.get(network) or float(network) * 1e9
    return Machine(gpus * machines, gpus, size, flops, moved)


def read_size(text: str) -> float:
    """Bytes of `24GiB` or `24GB`.

    :raises UsageError: if it is neither.
    """
    found = re.fullmatch(r'([0-9.]+)\s*(GiB|GB)', text)
    if found is None:
        raise UsageError(f'--gpu-memory {text}: give a size such as 24GiB or 80GB.')
    return float(found[1]) * (GIB if found[2] == 'GiB' else 1e9)


@dataclass(frozen=True)
class Option:
    """A way to run it."""

    placement: str
    run: Run
    dtype: str
    memory: Memory
    speed: Speed
    fits: bool

    @property
    def words(self) -> str:
        """The options of `parlai train_model`."""
        extra = [
            _OPTION[self.placement],
            '--dialogue-packing false' if not self.run.packed else '',
            '--checkpoint-activations true' if self.run.recompute else '',
            f'--tokens-at-once {self.run.tokens_at_once}',
        ]
        return ' '.join(filter(None, extra))


def options(run: Run, shape: Shape, on: Machine) -> Iterator[Option]:
    """Every placement, whole dialogues and turn by turn, with and without recomputation."""
    placements = [p for p in PLACEMENTS if p in _sensible(run, on)]
    for placement in placements:
        for packed in (True, False):
            for recompute in (False, True):
                tried = replace(run, packed=packed, recompute=recompute)
                of_device = memory(tried, shape, placement, on.devices, on.of_machine)
                took = speed(tried, shape, placement, on.devices, on.of_machine, on.flops, on.network)
                fits = of_device.peak + LIBRARIES <= on.memory
                yield Option(placement, tried, '', of_device, took, fits)


def _sensible(run: Run, on: Machine) -> list[str]:
    found = ['none']
    if on.of_machine > 1 and run.agent != 'full':
        found.append('device map')
    if on.devices > 1:
        found.append('full')
    if on.of_machine < on.devices and on.of_machine > 1:
        found.append('hybrid')
    return found


def best(found: list[Option]) -> Option | None:
    """The fastest that fits."""
    return max((one for one in found if one.fits), key=lambda one: one.speed.examples_per_s, default=None)


def advice(run: Run, shape: Shape, on: Machine) -> str:
    """What to change where nothing fits."""
    fewer = [replace(run, tokens_at_once=n) for n in (4096, 2048, 1024, 1) if n < run.tokens_at_once]
    for tried in fewer:
        found = best(list(options(tried, shape, on)))
        if found is not None:
            return f'use {found.words}'
    for count in (2, 4, 8, 16, 32, 64):
        more = replace(on, devices=count * on.devices, of_machine=count * on.of_machine)
        found = best(list(options(replace(run, tokens_at_once=1), shape, more)))
        if found is not None:
            return f'use {more.of_machine} such GPUs a machine and {found.words}'
    return 'use an LLM of fewer parameters'


def report(llm: str, dtype: str, run: Run, on: Machine) -> list[str]:
    """The lines that `spt plan` prints. Full fine-tuning is in float32."""
    dtype = 'float32' if run.agent == 'full' else dtype
    shape = shape_of(llm, getattr(torch, dtype))
    if dtype == 'float32':
        on = replace(on, flops=on.flops * FLOAT32)
    found = list(options(run, shape, on))
    lines = [
        f'{llm}: {shape.parameters / 1e9:.3g} B parameters ({shape.source}), {_gb(shape.bytes)} in {dtype}; '
        f'{run.agent} trains {trained(run, shape):,} numbers',
        f'{on.devices} devices, {on.of_machine} a machine, {_gb(on.memory)} each, of which the libraries take '
        f'{_gb(LIBRARIES)}; {on.flops / 1e12:.3g} TFLOP/s and {on.network / 1e9:.3g} GB/s each (estimates)',
        f'a step: {run.batchsize} dialogues a process of {run.turns} turns and {run.dialogue} tokens, '
        f'{run.prompts} prompts; --tokens-at-once {run.tokens_at_once}',
        '',
        'GB a device: weights, activations, logits, optimizer, at most in training; caches of '
        f'{run.replies} replies; GB moved a step',
        f'{"":34}weights    act. logits  optim.   train. caches   moved examples/s  epoch h',
    ]
    for one in found:
        label = f'{one.placement}, {"dialogues" if one.run.packed else "turns"}{", recomputed" * one.run.recompute}'
        m, s = one.memory, one.speed
        parts = (m.weights, m.activations, m.logits, m.states)
        lines.append(
            f'{label:34}'
            + ''.join(f'{part / 1e9:7.2f} ' for part in parts)
            + f'{m.training / 1e9:8.2f} {m.cache / 1e9:6.2f} {s.moved / 1e9:7.2f} {s.examples_per_s:10.3g} '
            f'{EXAMPLES / s.examples_per_s / 3600:8.3g}{"" if one.fits else "  does not fit"}'
        )
    chosen = best(found)
    lines += ['', f'Use: {chosen.words}' if chosen else f'Nothing fits; {advice(run, shape, on)}.']
    return lines


def _gb(size: float) -> str:
    return f'{size / 1e9:.3g} GB'
