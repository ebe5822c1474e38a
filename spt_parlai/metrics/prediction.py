"""A batch's predictions and losses as ParlAI metrics, one metric per example."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from parlai.core.metrics import AverageMetric, Metric
from parlai.core.torch_generator_agent import PPLMetric
from torch import Tensor

from spt_parlai.objective import Losses


def prediction_metrics(
    log_probs: Tensor, greedy: Tensor, targets: Tensor, example: Tensor, selected: Tensor
) -> Iterator[tuple[str, list[Metric]]]:
    """Name and metrics: ParlAI's loss, perplexity and accuracies, under each example's selected prompt.

    :param log_probs: float32 [K, N], every prompt's log-probability of each target token.
    :param greedy: int64 [N], the likeliest token at each place under the selected prompt.
    :param targets: int64 [N], the target tokens.
    :param example: int64 [N], whose each target token is.
    :param selected: int64 [B], each example's selected prompt.
    """
    B, N = len(selected), len(example)
    own = log_probs.detach()[selected[example], torch.arange(N, device=example.device)]  # [N]
    nll = own.new_zeros(B, dtype=torch.float64).index_add(0, example, -own.double()).tolist()
    tokens = torch.bincount(example, minlength=B).tolist()
    correct = torch.bincount(example, (greedy == targets).double(), minlength=B).tolist()
    yield 'loss', AverageMetric.many(nll, tokens)
    yield 'ppl', PPLMetric.many(nll, tokens)
    yield 'token_acc', AverageMetric.many(correct, tokens)
    yield 'token_em', AverageMetric.many([int(c == n) for c, n in zip(correct, tokens, strict=True)])


def loss_metrics(losses: Losses) -> Iterator[tuple[str, list[Metric]]]:
    """Name and metrics: the objective, the NLL summed over the prompts, and each term before it is weighted.

    An example's share of a loss of pairs is its pairs with the earlier examples, so that the average over examples is
    the mean over pairs. A batch without pairs reports no such loss.
    """
    B = losses.nll.shape[1]
    yield 'spt_loss', AverageMetric.many([float(losses.total.detach())] * B)
    yield 'nll', AverageMetric.many(losses.nll.detach().sum(0).tolist())
    for name, (values, counts) in losses.terms.items():
        if counts is None:
            yield name, AverageMetric.many(values.detach().tolist())
        elif counts.any():
            yield name, AverageMetric.many(values.detach().sum(0).tolist(), counts.sum(0).tolist())
