"""The four losses of equations 2–6, per example, in float32 or better.

Symbols: K prompts, B examples, N target tokens of the batch. `example`, int64 [N], is the example of each token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, field, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spt_parlai.objective.assignment import ASSIGNMENTS, BY_CONTEXT, Assigned, smoothed


def mean_per_example(values: Tensor, example: Tensor, num_examples: int) -> Tensor:
    """Mean over each example's tokens: [..., N] → [..., B]."""
    count = torch.bincount(example, minlength=num_examples).to(values)
    return sum_per_example(values, example, num_examples) / count.clamp(min=1)


def sum_per_example(values: Tensor, example: Tensor, num_examples: int) -> Tensor:
    """Sum over each example's tokens: [..., N] → [..., B]."""
    return values.new_zeros(*values.shape[:-1], num_examples).index_add(-1, example, values)


def prompt_nll(log_probs: Tensor, example: Tensor, num_examples: int) -> Tensor:
    """Eq. 2: log_probs [K, N] → nll [K, B], the mean negative log-likelihood per target token under each prompt."""
    return mean_per_example(-log_probs, example, num_examples)


def gold_distribution(nll: Tensor, tau_gold: float) -> Tensor:
    """Which prompts the LM prefers (eq. 3, left): nll [K, B] → softmax over prompts [B, K], without gradient."""
    return torch.softmax(-nll.detach().T / tau_gold, dim=-1)


def noisy_gold(gold: Tensor, noise: Tensor) -> Tensor:
    """A.8: gold [B, K] + noise [B, K], clamped at 0 and renormalised; a row that is 0 then stays as it was."""
    noisy = (gold + noise).clamp(min=0)
    total = noisy.sum(-1, keepdim=True)
    something = total > torch.finfo(total.dtype).tiny
    return torch.where(something, noisy / torch.where(something, total, 1.0), gold)


def selection_loss(gold: Tensor, scores: Tensor, tau_score: float) -> Tensor:
    """Eq. 3: KL(gold ‖ softmax(scores / τ_s)). gold [B, K], scores [B, K] → [B]."""
    return F.kl_div(torch.log_softmax(scores / tau_score, dim=-1), gold, reduction='none').sum(-1)


def contrastive_loss(scores: Tensor, similar: Tensor, pairs: Tensor) -> Tensor:
    """Eq. 4 for the chosen pairs of the batch: 1 − cos where similar, else max(0, cos).

    scores [B, K]; similar, pairs: bool [B, B]. Returns [B, B], zero where `pairs` is false.
    """
    unit = F.normalize(scores, dim=-1)
    cosine = unit @ unit.T
    return torch.where(similar, 1 - cosine, cosine.clamp(min=0)) * pairs


def unordered_pairs(B: int, apart: Tensor | None = None) -> Tensor:
    """bool [B, B], true above the diagonal; with `apart`, int64 [B], only for two examples that differ in it."""
    device = None if apart is None else apart.device
    pairs = torch.ones(B, B, dtype=torch.bool, device=device).triu(1)
    return pairs if apart is None else pairs & (apart[:, None] != apart[None])


def fusion_nll(log_probs: Tensor, example: Tensor, num_examples: int) -> Tensor:
    """Eq. 5: −log of the mean of the prompts' probabilities, mean over target tokens. [K, N] → [B]."""
    fused = math.log(len(log_probs)) - torch.logsumexp(log_probs, dim=0)  # [N]
    return mean_per_example(fused, example, num_examples)


# ---- the objective ------------------------------------------------------------------------------------------


class Term(NamedTuple):
    """One term of eq. 6, not yet averaged.

    values: [B], or [B, B] for a loss of pairs (row: the earlier example, column: the later one); counts: bool of the
    same shape, which of the values count, or None if all of them do.
    """

    values: Tensor
    counts: Tensor | None = None

    def mean(self) -> Tensor:
        """A scalar; 0 where nothing counts."""
        return self.values.mean() if self.counts is None else self.values.sum() / self.counts.sum().clamp(min=1)


class TermInputs(NamedTuple):
    """What a term that reads the scores is computed from; see `SptObjective.__call__`."""

    scores: Tensor
    gold: Tensor
    similar: Tensor | None
    noise: Tensor | None
    apart: Tensor | None


@dataclass(frozen=True)
class Losses:
    """The objective of one batch. total: scalar (eq. 6); nll: [K, B] (eq. 2); terms: the active ones by name."""

    total: Tensor
    nll: Tensor
    terms: dict[str, Term]


def _selection(objective: SptObjective, inputs: TermInputs) -> Term:
    gold = inputs.gold
    if inputs.noise is not None:
        gold = noisy_gold(gold, objective.gold_noise * inputs.noise)
    return Term(selection_loss(gold, inputs.scores, objective.tau_score))


def _contrastive(_objective: SptObjective, inputs: TermInputs) -> Term:
    if inputs.similar is None:
        raise ValueError('the contrast needs `similar`, which pairs of examples have similar contexts')
    pairs = unordered_pairs(len(inputs.scores), inputs.apart).to(inputs.scores.device)
    return Term(contrastive_loss(inputs.scores, inputs.similar, pairs), pairs)


def _setting(default: float, help: str, **limits: Any) -> Any:
    """A number that the objective depends on. help: for `--help`; limits: `at_least` or `above`, and a `note` on it."""
    return field(default=default, metadata={'help': help, **limits})


def _weight(help: str, logged: str, default: float = 1.0, **term: Callable) -> Any:
    """The λ of a loss, and with it all that is said of that loss: the field `lambda_X` declares the loss X.

    help: for `--help`; logged: what the log entry X means; default: 1 as in the paper, 0 for a loss that is not the
    paper's. One of two functions computes it:
    score_term: (objective, TermInputs) → Term, for a loss that reads the scores;
    token_term: (log_probs [K, n], example [n], B) → [B], for a loss of the target tokens' log-probabilities, which is
    summed over any groups of whole examples (see `SptObjective.token_loss`).
    """
    limit = {'at_least': 0.0, 'note': '0 switches the loss off'}
    metadata = {'help': f'weight of the {help} (0: off)', **limit, 'logged': logged, **term}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class SptObjective:
    """Eq. 6: Σ_i nll + Σ_X lambda_X · X. A weight of 0 switches its loss off.

    A loss is declared by its `lambda_X` field and nowhere else: the option, its check, the log entry X and the
    ablation all come from the field's metadata.

    With an assignment of replies to prompts (see `objective.assignment`), Σ_i nll becomes Σ_i r_i · nll_i with the
    reply's responsibilities r, which are the gold distribution of the selection loss, too (a mixture's without its
    bias). The losses of the tokens (the fusion) are off then: they train every prompt on every reply.
    """

    lambda_selection: float = _weight(
        'selection KL',
        'KL divergence that teaches the retriever which prompt the LLM prefers (eq. 3)',
        score_term=_selection,
    )
    lambda_contrastive: float = _weight(
        'context-prompt contrast',
        'context-prompt contrast, mean over the pairs of a batch (eq. 4); absent from a batch without pairs',
        score_term=_contrastive,
    )
    lambda_fusion: float = _weight('fusion NLL', 'NLL under the averaged prediction (eq. 5)', token_term=fusion_nll)
    tau_gold: float = _setting(1.0, 'temperature of the gold distribution', above=0.0)
    tau_score: float = _setting(1.0, 'temperature of the retriever scores in the selection KL', above=0.0)
    gold_noise: float = _setting(
        0.0,
        'strength of the normal noise on the gold distribution in training (stability experiment A.8)',
        at_least=0.0,
        note='0 adds none',
    )
    prompt_assignment: str = field(
        default='all',
        metadata={
            'help': 'which prompts learn from a reply. all: every one (the paper); gated: the one that the retriever '
            'selects; mixture: as much as the retriever and the reply speak for each; wta: the one under which the '
            'reply is likeliest; annealed: the same, softly; equal: the same, but each prompt gets as many replies',
            'choices': ('all', *ASSIGNMENTS),
        },
    )
    assignment_epsilon: float = _setting(
        0.05, "share of a prompt's part in a reply that goes to the other prompts", at_least=0.0, below=1.0
    )
    assignment_balance: float = _setting(
        0.1,
        'with --prompt-assignment wta, how fast the handicap of prompts that win too often grows, in nats for each '
        'batch',
        at_least=0.0,
        note='0 handicaps none',
    )

    assignment_window: int = _setting(
        512,
        'with --prompt-assignment gated or mixture, the prompts get equal shares of this many recent replies',
        at_least=0,
        note='0 balances nothing',
    )

    @property
    def assigns(self) -> bool:
        """Whether replies are assigned to prompts; if not, every prompt trains on every reply."""
        return self.prompt_assignment != 'all'

    @classmethod
    def losses(cls) -> dict[str, Field]:
        """Name of every loss beside the NLL → the field that declares it."""
        return {f.name.removeprefix('lambda_'): f for f in fields(cls) if f.name.startswith('lambda_')}

    def _active(self, kind: str) -> Iterator[tuple[str, float, Callable]]:
        """(name, weight, function) of each active loss that has a function of this kind."""
        for name, declared in self.losses().items():
            weight = 0.0 if self.assigns and 'token_term' in declared.metadata else getattr(self, declared.name)
            if weight and kind in declared.metadata:
                yield name, weight, declared.metadata[kind]

    def log_prior(self, scores: Tensor) -> Tensor:
        """log π, the retriever's distribution over the prompts: scores [..., K] → [..., K]."""
        return torch.log_softmax(scores / self.tau_score, dim=-1)

    def responsibilities(
        self, log_probs: Tensor, scores: Tensor, example: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """How much of each reply every prompt is to learn: [B, K], rows sum to 1; all ones without an assignment.

        :param bias: [K] or [B, K], added to log π (`even_loads`) or, where the assignment looks at the reply alone, to
            the log-likelihoods (`balanced`, `equal_sizes`); None adds nothing.
        """
        if not self.assigns:
            return torch.ones_like(scores)
        with torch.no_grad():
            likelihood = sum_per_example(log_probs, example, len(scores)).T  # [B, K]
            prior = self.log_prior(scores)
            if bias is not None and self.prompt_assignment in BY_CONTEXT:
                prior = prior + bias.to(prior)
            elif bias is not None:
                likelihood = likelihood + bias.to(likelihood)
            found = ASSIGNMENTS[self.prompt_assignment](Assigned(likelihood, prior, self.tau_gold))
            return smoothed(found, self.assignment_epsilon)

    def token_loss(self, log_probs: Tensor, scores: Tensor, example: Tensor, bias: Tensor | None = None) -> Tensor:
        """The terms that log-probabilities enter with a gradient: the NLL and every `token_term`. A scalar.

        A sum over examples: log_probs float32 [K, n] and example int64 [n] may hold any of the batch's B examples,
        each whole, and what they add to the loss is returned. scores: float32 [B, K] of the whole batch, without
        gradient; bias: see `responsibilities`.
        """
        B = len(scores)
        weights = self.responsibilities(log_probs, scores, example, bias)
        loss = (weights.T * prompt_nll(log_probs, example, B)).sum() / B
        for _, weight, token_term in self._active('token_term'):
            loss = loss + weight * token_term(log_probs, example, B).sum() / B
        return loss

    def __call__(
        self,
        log_probs: Tensor,
        scores: Tensor,
        example: Tensor,
        similar: Tensor | None,
        noise: Tensor | None = None,
        apart: Tensor | None = None,
        token_loss: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Losses:
        """The losses of a batch.

        :param log_probs: float32 [K, N], every prompt's log-probability of each target token.
        :param scores: float32 [B, K], the retriever's.
        :param example: int64 [N], the example that each target token belongs to.
        :param similar: bool [B, B], which contexts are similar; only the contrast needs it.
        :param noise: N(0, 1) [B, K]; `gold_noise` times it is added to the gold distribution.
        :param apart: int64 [B]; the contrast then takes only pairs that differ in it (in their dialogue).
        :param token_loss: scalar, what the method `token_loss` returned for this batch, if it has run already.
        :param bias: [K] or [B, K]; see `responsibilities`.
        :raises ValueError: if the contrast is active and `similar` is None.
        """
        B = len(scores)
        nll = prompt_nll(log_probs, example, B)
        total = self.token_loss(log_probs, scores, example, bias) if token_loss is None else token_loss
        total = total + 0.0 * scores.sum()  # every trainable tensor takes part in every step
        if self.assigns:
            # a mixture's b makes prompts learn from replies that others predict better: these are not to be selected
            of_gold = None if self.prompt_assignment == 'mixture' else bias
            gold = self.responsibilities(log_probs, scores, example, of_gold)
        else:
            gold = gold_distribution(nll, self.tau_gold)
        inputs = TermInputs(scores, gold, similar, noise, apart)
        terms = {}
        for name, weight, score_term in self._active('score_term'):
            terms[name] = score_term(self, inputs)
            total = total + weight * terms[name].mean()
        for name, _, token_term in self._active('token_term'):
            terms[name] = Term(token_term(log_probs, example, B))
        return Losses(total, nll, terms)
