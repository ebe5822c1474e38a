"""How often and how evenly prompts are used, and what their selection is worth."""

import math

import pytest
import torch

from spt_parlai.metrics.prompt_usage import UsageEntropy, usage_metrics


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


def mean(metrics):
    return sum(metrics[1:], metrics[0]).value()


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
