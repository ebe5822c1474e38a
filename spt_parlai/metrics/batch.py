"""One batch as ParlAI metrics, one metric per example: predictions, losses, and how the prompts are used."""

from __future__ import annotations

import math

import torch
from parlai.core.metrics import AverageMetric, Metric
from parlai.core.torch_generator_agent import PPLMetric
from torch import Tensor

from spt_parlai.objective import Losses

Named = dict[str, list[Metric]]
"""Name → a metric of each example."""


def prediction_metrics(log_probs: Tensor, greedy: Tensor, targets: Tensor, example: Tensor, selected: Tensor) -> Named:
    """Return ParlAI's loss, perplexity and accuracies, under each example's selected prompt.

    :param log_probs: float32 [K, N], every prompt's log-probability of each target token.
    :param greedy: int64 [N], the likeliest token at each place under the selected prompt.
    :param targets: int64 [N], the target tokens.
    :param example: int64 [N], the example that each target token belongs to.
    :param selected: int64 [B], each example's selected prompt.
    """
    B, N = len(selected), len(example)
    own = log_probs.detach()[selected[example], torch.arange(N, device=example.device)]  # [N]
    nll = own.new_zeros(B, dtype=torch.float64).index_add(0, example, -own.double()).tolist()
    tokens = torch.bincount(example, minlength=B).tolist()
    correct = torch.bincount(example, (greedy == targets).double(), minlength=B).tolist()
    return {
        'loss': AverageMetric.many(nll, tokens),
        'ppl': PPLMetric.many(nll, tokens),
        'token_acc': AverageMetric.many(correct, tokens),
        'token_em': AverageMetric.many([int(c == n) for c, n in zip(correct, tokens, strict=True)]),
    }


def loss_metrics(losses: Losses) -> Named:
    """Return the objective, the NLL summed over the prompts, and each term before it is weighted.

    An example's share of a loss of pairs is its pairs with the earlier examples, so that the average over examples is
    the mean over pairs. A batch without pairs reports no such loss.
    """
    metrics: Named = {
        'spt_loss': AverageMetric.many([float(losses.total.detach())] * losses.nll.shape[1]),
        'nll': AverageMetric.many(losses.nll.detach().sum(0).tolist()),
    }
    for name, (values, counts) in losses.terms.items():
        if counts is None:
            metrics[name] = AverageMetric.many(values.detach().tolist())
        elif counts.any():
            metrics[name] = AverageMetric.many(values.detach().sum(0).tolist(), counts.sum(0).tolist())
    return metrics


class UsageEntropy(Metric):
    """Entropy of the selected prompts' distribution over its maximum ln K: 1 is even use, 0 is a collapse.

    The counts of batches and processes add up.

    :param counts: how often each of the K prompts was selected.
    """

    __slots__ = ('_counts',)

    def __init__(self, counts: tuple[int, ...]):
        self._counts = tuple(counts)

    @classmethod
    def selected(cls, prompt: int, num_prompts: int) -> UsageEntropy:
        """The metric of one example."""
        return cls(tuple(int(i == prompt) for i in range(num_prompts)))

    def __add__(self, other: UsageEntropy | None) -> UsageEntropy:
        if other is None:
            return self
        return UsageEntropy(tuple(a + b for a, b in zip(self._counts, other._counts, strict=True)))

    def value(self) -> float:
        total = sum(self._counts)
        if total == 0 or len(self._counts) < 2:
            return 0.0
        shares = [count / total for count in self._counts if count]
        return sum(p * math.log(1 / p) for p in shares) / math.log(len(self._counts))


def usage_metrics(selected: Tensor, nll: Tensor) -> Named:
    """Return how often each prompt is selected, how evenly, and what the selection is worth.

    The gains are in nats per target token: how much smaller the NLL under the selected prompt, and under the best
    prompt in hindsight, is than under a prompt drawn at random.

    :param selected: int64 [B], each example's selected prompt.
    :param nll: float32 [K, B], each prompt's mean NLL per target token.
    """
    prompts, nll = selected.tolist(), nll.detach()
    K = len(nll)
    gain = nll.mean(0) - nll  # [K, B]
    metrics: Named = {
        f'prompt_usage_{k}': AverageMetric.many([int(prompt == k) for prompt in prompts]) for k in range(K)
    }
    metrics['prompt_usage_entropy'] = [UsageEntropy.selected(prompt, K) for prompt in prompts]
    metrics['selected_gain'] = AverageMetric.many(gain.gather(0, selected[None].to(gain.device))[0].tolist())
    metrics['best_gain'] = AverageMetric.many(gain.amax(0).tolist())
    return metrics


class MutualInformation(Metric):
    """I(context; prompt) in nats under π(prompt given context): entropy of the mean of π minus the mean of its entropy.

    0: every context has the same π. ln K: each context is sure of one prompt, and all prompts are used alike. The sums
    of batches and processes add up.

    :param total: the sum of π over contexts, K numbers; entropy: the sum of its entropies; contexts: how many.
    """

    __slots__ = ('_total', '_entropy', '_contexts')

    def __init__(self, total: tuple[float, ...], entropy: float, contexts: int = 1):
        self._total, self._entropy, self._contexts = tuple(total), entropy, contexts

    def __add__(self, other: MutualInformation | None) -> MutualInformation:
        if other is None:
            return self
        total = tuple(a + b for a, b in zip(self._total, other._total, strict=True))
        return MutualInformation(total, self._entropy + other._entropy, self._contexts + other._contexts)

    def value(self) -> float:
        shares = [total / self._contexts for total in self._total if total]
        return max(0.0, sum(p * math.log(1 / p) for p in shares) - self._entropy / self._contexts)


def information_metrics(scores: Tensor, tau: float) -> Named:
    """Return what the retriever knows of the prompt. scores: float32 [B, K]; π = softmax(scores / τ)."""
    log_pi = torch.log_softmax(scores.detach().double() / tau, dim=-1)
    pi = log_pi.exp()
    entropy = -(pi * log_pi).sum(-1)
    return {'prompt_information': list(map(MutualInformation, map(tuple, pi.tolist()), entropy.tolist()))}
