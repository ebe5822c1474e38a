"""How replies compete for the prompts in training (`--prompt-assignment`): the bias of a batch, and what is kept of it.

The bias enters the responsibilities only (`objective.assignment`). It is the same for every way to run a batch, and it
counts the replies of all processes.
"""

from __future__ import annotations

from typing import Any

import torch
from parlai.utils.distributed import get_rank
from torch import Tensor

from spt_parlai.model.prompted_lm import Prediction, PromptedLM
from spt_parlai.objective import SptObjective
from spt_parlai.objective.assignment import BY_CONTEXT, balanced, equal_sizes, even_loads
from spt_parlai.objective.losses import sum_per_example
from spt_parlai.training.distributed import of_all_processes


class Competition:
    """No competition: what a prompt learns from a reply depends on that reply alone.

    :param objective: the assignment and its settings.
    :param num_prompts, width: K and D.
    """

    def __init__(self, objective: SptObjective, num_prompts: int, width: int):
        self.objective, self.num_prompts, self.width = objective, num_prompts, width

    def bias(self, model: PromptedLM, batch: Any) -> Tensor | None:
        """Return the bias of the prompts for a batch that is about to be trained on, [K] or [B, K]."""
        return None

    def observe(self, model: PromptedLM, batch: Any, prediction: Prediction) -> None:
        """Take note of a batch that was trained on."""

    def copy_prompt(self, prompt: int, source: int) -> None:
        """Treat a prompt as the one that it has become a copy of."""

    def states(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold, float32."""
        return {}

    def restore(self, states: dict[str, Any]) -> None:
        """Restore what a checkpoint holds."""


class Handicap(Competition):
    """`wta`: a prompt that wins too often is handicapped."""

    def __init__(self, *args):
        super().__init__(*args)
        self.balance = torch.zeros(self.num_prompts)

    def bias(self, model, batch):
        return self.balance

    def observe(self, model, batch, prediction):
        shares = self.objective.responsibilities(
            prediction.log_probs, prediction.scores, prediction.example, self.balance
        )
        won = torch.bincount(shares.argmax(-1), minlength=self.num_prompts).cpu()
        load = torch.stack(of_all_processes(won)).sum(0)
        self.balance = balanced(self.balance, load, self.objective.assignment_balance)

    def copy_prompt(self, prompt, source):
        self.balance[prompt] = self.balance[source]

    def states(self):
        return {'balance': self.balance}

    def restore(self, states):
        self.balance = states.get('balance', self.balance).view(self.num_prompts)


class EvenShares(Competition):
    """`gated` and `mixture`: the prompts get equal shares of the recent replies.

    `recent`, [Q, D + K], holds what the retriever sees of their contexts and their log-likelihoods.
    """

    def __init__(self, *args):
        super().__init__(*args)
        self.recent = torch.zeros(0, self.width + self.num_prompts)

    @torch.no_grad()
    def bias(self, model, batch):
        means, likelihood = self.recent.split([self.width, self.num_prompts], dim=1)
        weights = self.objective.log_prior(model.scores(means)).cpu()
        return even_loads(weights + likelihood if self.objective.prompt_assignment == 'mixture' else weights)

    @torch.no_grad()
    def observe(self, model, batch, prediction):
        scored = batch.get('scored_vec')
        packed = () if scored is not None else (batch.get('row'), batch.get('context_length'))
        means = model.context_means(batch.text_vec if scored is None else scored, *packed)
        likelihood = sum_per_example(prediction.log_probs, prediction.example, len(prediction.scores)).T
        seen = torch.cat(of_all_processes(torch.cat([means, likelihood.to(means)], dim=1).cpu()))
        seen = seen[seen.isfinite().all(1)]  # a step whose loss is not finite is skipped
        self.recent = torch.cat([self.recent, seen])[-self.objective.assignment_window :]

    def copy_prompt(self, prompt, source):
        self.recent[:, self.width + prompt] = self.recent[:, self.width + source]

    def states(self):
        return {'recent': self.recent}

    def restore(self, states):
        self.recent = states.get('recent', self.recent).view(-1, self.width + self.num_prompts)


class EqualSizes(Competition):
    """`equal`: the replies of all processes' batches are divided together, after a pass without gradients."""

    @torch.no_grad()
    def bias(self, model, batch):
        found = model(
            batch.text_vec,
            batch.label_vec,
            row=batch.get('row'),
            context_length=batch.get('context_length'),
            scored=batch.get('scored_vec'),
        )
        own = sum_per_example(found.log_probs, found.example, len(found.scores)).T.cpu()
        everyone = of_all_processes(own)
        sizes = [len(likelihood) for likelihood in everyone]
        return equal_sizes(torch.cat(everyone)).split(sizes)[get_rank()].to(found.scores)


def competition_of(objective: SptObjective, num_prompts: int, width: int) -> Competition:
    """The competition that the assignment of an objective asks for."""
    kind: type[Competition] = Competition
    if objective.prompt_assignment in BY_CONTEXT and objective.assignment_window:
        kind = EvenShares
    elif objective.prompt_assignment in ('wta', 'equal'):
        kind = Handicap if objective.prompt_assignment == 'wta' else EqualSizes
    return kind(objective, num_prompts, width)
