"""One batch's predictions and losses → ParlAI metrics, one value an example."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from parlai.core.metrics import AverageMetric, Metric
from parlai.core.torch_generator_agent import PPLMetric
from torch import Tensor

from spt_parlai.metrics.prompt_usage import UsageEntropy
from spt_parlai.objective import Losses

Named = Iterator[tuple[str, list[Metric]]]


def prediction_metrics(log_probs: Tensor, greedy: Tensor, targets: Tensor, example: Tensor, selected: Tensor) -> Named:
    """ParlAI's own metrics, under the selected prompt.

    log_probs float32 [K, N]; greedy, targets, example int64 [N]; selected int64 [B].
    """
    B, N = len(selected), len(example)
    own = log_probs.detach()[selected[example], torch.arange(N, device=example.device)]  # [N]
    nll = own.new_zeros(B, dtype=torch.float64).index_add(0, example, -own.double()).tolist()
    tokens = torch.bincount(example, minlength=B).tolist()
    correct = torch.bincount(example, (greedy == targets).double(), minlength=B).tolist()
    yield 'loss', AverageMetric.many(nll, tokens)
    yield 'ppl', PPLMetric.many(nll, tokens)
    yield 'token_acc', AverageMetric.many(correct, tokens)
    yield 'token_em', AverageMetric.many([int(c == n) for c, n in zip(correct, tokens)])


def loss_metrics(losses: Losses) -> Named:
    """The objective and its terms as they enter it, before their weights.

    The NLL is summed over the prompts. An example's share of a loss of pairs are its pairs with the earlier examples,
    so that the average over examples is the mean over pairs.
    """
    B = losses.nll.shape[1]
    yield 'spt_loss', AverageMetric.many([float(losses.total.detach())] * B)
    yield 'nll', AverageMetric.many(losses.nll.detach().sum(0).tolist())
    for name, (values, counts) in losses.terms.items():
        if counts is None:
            yield name, AverageMetric.many(values.detach().tolist())
        elif counts.any():  # of a batch without pairs there is nothing to say
            yield name, AverageMetric.many(values.detach().sum(0).tolist(), counts.sum(0).tolist())


def usage_metrics(selected: Tensor, nll: Tensor) -> Named:
    """How often each prompt was selected, how evenly, and what choosing is worth, in nats a token of the target.

    selected: int64 [B]; nll [K, B], of each prompt.
    """
    K = len(nll)
    for k in range(K):
        yield f'prompt_usage_{k}', AverageMetric.many((selected == k).int().tolist())
    yield 'prompt_usage_entropy', [UsageEntropy.selected(s, K) for s in selected.tolist()]
    nll = nll.detach()
    gain = nll.mean(0) - nll  # [K, B], over a prompt drawn at random
    yield 'selected_gain', AverageMetric.many(gain.gather(0, selected[None].to(gain.device))[0].tolist())
    yield 'best_gain', AverageMetric.many(gain.amax(0).tolist())
