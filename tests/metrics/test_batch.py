"""The metrics of a batch's predictions and losses against loops over its examples."""

import math

import pytest
import torch

from spt_parlai.metrics.batch import (
    UsageEntropy,
    information_metrics,
    loss_metrics,
    prediction_metrics,
    usage_metrics,
)
from spt_parlai.objective.losses import Losses, Term


def mean(values):
    return sum(values[1:], values[0]).value()


def of(nll, **terms):
    return Losses(torch.tensor(1.0), nll, terms)


def test_prediction_metrics_are_those_of_the_selected_prompt():
    torch.manual_seed(0)
    example = torch.tensor([0, 0, 0, 1, 2, 2])
    log_probs = -torch.rand(3, 6)
    selected, targets = torch.tensor([2, 0, 1]), torch.tensor([4, 5, 6, 7, 8, 9])
    greedy = torch.tensor([4, 5, 6, 0, 8, 0])
    got = dict(prediction_metrics(log_probs, greedy, targets, example, selected))
    own = [-float(log_probs[selected[n], i]) for i, n in enumerate(example)]
    assert mean(got['loss']) == pytest.approx(sum(own) / 6)
    assert mean(got['ppl']) == pytest.approx(math.exp(sum(own) / 6))
    assert mean(got['token_acc']) == pytest.approx(4 / 6)
    assert mean(got['token_em']) == pytest.approx(1 / 3)
    assert [m.value() for m in got['loss']] == pytest.approx([sum(own[:3]) / 3, own[3], sum(own[4:]) / 2])


def test_contrastive_is_the_mean_over_pairs_and_nothing_for_a_batch_of_one():
    losses = torch.tensor([[0.0, 0.5, 0.25], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    pairs = torch.ones(3, 3, dtype=torch.bool).triu(1)
    got = dict(loss_metrics(of(torch.ones(2, 3), selection=Term(torch.ones(3)), contrastive=Term(losses, pairs))))
    assert mean(got['contrastive']) == pytest.approx((0.5 + 0.25 + 1.0) / 3)
    pairs[0, 1] = False
    some = dict(
        loss_metrics(of(torch.ones(2, 3), selection=Term(torch.ones(3)), contrastive=Term(losses * pairs, pairs)))
    )
    assert mean(some['contrastive']) == pytest.approx((0.25 + 1.0) / 2)
    assert mean(got['nll']) == 2 and 'fusion' not in got
    nobody = Term(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool))
    alone = dict(loss_metrics(of(torch.ones(2, 1), contrastive=nobody)))
    assert 'contrastive' not in alone and 'selection' not in alone


def total(selected, num_prompts):
    metrics = [UsageEntropy.selected(s, num_prompts) for s in selected]
    return sum(metrics[1:], metrics[0])


@pytest.mark.parametrize(
    'selected, num_prompts, expected',
    [
        ([0, 1, 2, 3], 4, 1.0),
        ([2, 2, 2], 4, 0.0),
        ([0, 0, 1], 2, -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) / math.log(2)),
        ([0, 0], 1, 0.0),
    ],
)
def test_entropy_is_a_share_of_its_maximum(selected, num_prompts, expected):
    assert total(selected, num_prompts).value() == pytest.approx(expected)
    assert math.copysign(1, total(selected, num_prompts).value()) == 1  # never shown as -0


def test_it_adds_up_over_any_split():
    selected = [0, 1, 1, 3, 2, 2, 2]
    assert (total(selected[:3], 4) + total(selected[3:], 4)).value() == total(selected, 4).value()
    assert (total(selected, 4) + None).value() == total(selected, 4).value()


def test_usage_names_every_prompt_even_an_unused_one():
    got = dict(usage_metrics(torch.tensor([0, 2, 2, 2]), torch.ones(4, 4)))
    assert [mean(got[f'prompt_usage_{k}']) for k in range(4)] == [0.25, 0, 0.75, 0]
    assert 0 < mean(got['prompt_usage_entropy']) < 1


def test_gains_of_the_selection():
    """They compare with the mean over prompts, for each example, and are 0 with one prompt."""
    nll = torch.tensor([[1.0, 4.0], [3.0, 2.0], [2.0, 6.0]])
    got = dict(usage_metrics(torch.tensor([1, 0]), nll))
    assert [m.value() for m in got['selected_gain']] == [2 - 3, 4 - 4]
    assert [m.value() for m in got['best_gain']] == [2 - 1, 4 - 2]
    alone = dict(usage_metrics(torch.zeros(2, dtype=torch.long), nll[:1]))
    assert mean(alone['selected_gain']) == mean(alone['best_gain']) == 0


def test_information_of_context_and_prompt():
    torch.manual_seed(0)
    scores, tau = torch.rand(6, 3), 0.2
    joint = torch.softmax(scores.double() / tau, -1) / 6  # p(context, prompt)
    marginal = joint.sum(0)
    expected = sum(
        float(joint[n, k]) * math.log(6 * float(joint[n, k] / marginal[k])) for n in range(6) for k in range(3)
    )
    of_each = information_metrics(scores, tau)['prompt_information']
    assert expected > 0.05 and mean(of_each) == pytest.approx(expected)
    assert (mean(of_each[:2]) != mean(of_each)) and (mean(of_each[4:] + of_each[:4]) == pytest.approx(expected))
    assert mean(information_metrics(torch.ones(4, 3), 1.0)['prompt_information']) == pytest.approx(0, abs=1e-12)
    sure = information_metrics(torch.eye(3), 1e-3)['prompt_information']
    assert mean(sure) == pytest.approx(math.log(3)) and mean(sure[:1]) == 0 == (sure[0] + None).value()
