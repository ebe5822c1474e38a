import math

import pytest

from spt_parlai.metrics.prompt_usage import UsageEntropy


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
