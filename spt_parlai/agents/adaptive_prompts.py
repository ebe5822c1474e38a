"""Prompts that are hardly selected begin again from the one that is selected most (`--adaptive-prompts`)."""

from __future__ import annotations

from typing import Any

import torch
from parlai.utils import logging
from torch import Tensor

from spt_parlai.model.soft_prompts import COPIES_NOISE, SoftPromptGroup
from spt_parlai.options.declare import Opt, Option, belongs
from spt_parlai.training.distributed import of_all_processes
from spt_parlai.training.seeding import noise_generator

_NO_PROCESS = 2**31  # in place of a rank: a stream of random numbers that no process draws from


def _check_share(opt: Opt) -> str | None:
    K = opt.get('num_prompts', 4)
    if not opt['adaptive_prompts'] or (K > 1 and opt['adaptive_prompts'] < 1 / K):
        return None
    return f'give a share below 1/K ({1 / K:g} with --num-prompts {K}), or 0 to leave all prompts as they are'


OPTIONS = (
    Option(
        'adaptive_prompts',
        0.0,
        'a prompt that the retriever selects for less than this share of the replies begins again, as a copy of the '
        'prompt that it selects most, with noise (0: none does)',
        float,
        at_least=0,
        below=1,
        check=_check_share,
    ),
    Option(
        'adaptive_every',
        50,
        'after how many updates these shares are looked at, each time those since the last look',
        int,
        at_least=1,
        needs=belongs('--adaptive-prompts', lambda opt: (opt.get('adaptive_prompts') or 0) > 0),
    ),
)


def splits(use: Tensor, share: float) -> list[tuple[int, int]]:
    """Which prompts begin again, and as whose copies: (prompt, source) for each prompt used less than `share`.

    use: [K], how often each prompt was selected. Each copy is expected to take half of what its source has.
    """
    use = use.double() / use.sum()
    found = []
    for prompt in torch.nonzero(use < share).flatten().tolist():
        source = int(use.argmax())
        use[source] /= 2
        use[prompt] = use[source]
        found.append((prompt, source))
    return found


@torch.no_grad()
def begin_again(
    group: SoftPromptGroup, optimizer: torch.optim.Optimizer, prompt: int, source: int, generator: torch.Generator
) -> None:
    """Make a prompt a copy of another, with normal noise, and its part of the optimizer's state a copy, too.

    :param generator: draws the noise, on the CPU; its standard deviation is `COPIES_NOISE` times that of all prompts.
    """
    own = group.of_each
    noise = torch.randn(own[source].shape, generator=generator).to(own)
    own[prompt] = own[source] + COPIES_NOISE * own.std() * noise
    for value in optimizer.state[own].values():
        if isinstance(value, Tensor) and value.shape == own.shape:
            value[prompt] = value[source]


class AdaptivePrompts:
    """Counts how often each prompt is selected, and lets prompts begin again.

    `use`: [K], the counts since the last look, over all processes; `splits`: every change, [update, prompt, source].
    """

    def __init__(self, num_prompts: int, share: float, every: int, seed: int):
        self.share, self.every, self.seed = share, every, seed
        self.use = torch.zeros(num_prompts)
        self.splits: list[list[int]] = []

    def observe(self, selected: Tensor) -> None:
        """Count the prompts selected for one training batch, int64 [B], in all processes."""
        used = torch.bincount(selected, minlength=len(self.use)).float().cpu()
        self.use = self.use + torch.stack(of_all_processes(used)).sum(0)

    def look(self, update: int, group: SoftPromptGroup, optimizer: torch.optim.Optimizer) -> list[tuple[int, int]]:
        """After an update, let prompts begin again if it is time; returns (prompt, source) of each.

        It does the same with the same noise in every process, and in a resumed run.
        """
        if update % self.every or not self.use.any():
            return []
        generator = noise_generator(self.seed, _NO_PROCESS, update)
        shares, found = 100 * self.use / self.use.sum(), splits(self.use, self.share)
        for prompt, source in found:
            begin_again(group, optimizer, prompt, source, generator)
            logging.info(
                f'Update {update}: prompt {prompt}, selected for {shares[prompt]:.1f}% of the replies, begins again '
                f'from prompt {source} ({shares[source]:.1f}%).'
            )
        self.splits += [[update, prompt, source] for prompt, source in found]
        self.use = torch.zeros_like(self.use)
        return found

    def states(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {'use': self.use, 'splits': self.splits}

    def restore(self, states: dict[str, Any]) -> None:
        """Restore what a checkpoint holds."""
        self.use = states.get('use', self.use).view(len(self.use))
        self.splits = states.get('splits', [])
