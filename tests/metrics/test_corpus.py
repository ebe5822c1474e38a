"""The sums of metrics that keep every reply."""

import pytest

from spt_parlai.metrics.corpus import Distinct


def test_nothing_is_distinct_without_ngrams():
    assert Distinct(['yes', ''], [2]).value() == 0 and Distinct([], [1]).value() == 0


def test_a_sum_leaves_what_it_was_made_of_alone():
    a, b, c = (Distinct([text], [1]) for text in ('x x', 'x y', 'z'))
    ab = a + b
    abc, abb = ab + c, ab + b  # two sums that go on from the same one
    assert [m.value() for m in (a, b, c, ab)] == [50, 100, 100, 50]
    assert abc.value() == 60 and abb.value() == pytest.approx(100 * 2 / 6) and (ab + ab).value() == 25
    assert (None + a) is a and (a + None) is a


def test_adding_up_takes_linear_time():
    """Ten thousand replies, one after the other: a copy for each sum would copy 50 million texts."""
    total = None
    for i in range(10_000):
        total = Distinct([f'w{i}'], [1]) + total if total is None else total + Distinct([f'w{i}'], [1])
    assert total.value() == 100 and len(total.items()) == 10_000
