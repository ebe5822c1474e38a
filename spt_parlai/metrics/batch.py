"""One batch's predictions and losses → ParlAI metrics, one value an example."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from parlai.core.metrics import AverageMetric, Metric
from parlai.core.torch_generator_agent import PPLMetric
from torch import Tensor

from spt_parlai.metrics.usage import UsageEntropy

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


def loss_metrics(
    total: Tensor,
    nll: Tensor,
    selection: Tensor | None,
    contrastive: Tensor | None,
    pairs: Tensor | None,
    fusion: Tensor | None,
) -> Named:
    """The terms of eq. 6 as they enter the total, before their λ; a term that is None is left out.

    total: scalar; nll [K, B], summed over the prompts; selection, fusion [B]; contrastive [B, B] and pairs bool [B, B], both above
    the diagonal: an example's share are its pairs with the earlier ones, so that the average over examples is the mean over pairs.
    """
    B = nll.shape[1]
    yield 'spt_loss', AverageMetric.many([float(total.detach())] * B)
    yield 'nll', AverageMetric.many(nll.detach().sum(0).tolist())
    if selection is not None:
        yield 'selection', AverageMetric.many(selection.detach().tolist())
    if contrastive is not None and pairs.any():  # of a batch without pairs there is nothing to say
        yield 'contrastive', AverageMetric.many(contrastive.detach().sum(0).tolist(), pairs.sum(0).tolist())
    if fusion is not None:
        yield 'fusion', AverageMetric.many(fusion.detach().tolist())


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
