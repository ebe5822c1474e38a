"""The paired tests, against a naive enumeration of all exchanges of dialogues and against sacrebleu's own."""

import itertools
import random
from functools import reduce
from operator import add

import numpy as np
import pytest
from scipy.stats import binomtest

from spt_parlai.dashboard.world_logs import Turn
from spt_parlai.metrics.corpus import Distinct, NgramEntropy
from spt_parlai.metrics.diversity import distinct_among
from spt_parlai.metrics.registry import response_metrics

WITHOUT_LOG = {'unigram_f1', 'rouge1', 'rouge2', 'rougeL', 'sacrebleu'}
DIVERSITY = {'dist1', 'dist2', 'dist', 'ent2', 'ent4', 'dist1_equal', 'dist2_equal'}


def turns_of(replies, labels=None, dialogues=None, **more):
    labels = labels or ['a b c d'] * len(replies)
    numbers = dialogues or range(len(replies))
    more = {'persona': (), 'metrics': [None] * len(replies), **more}
    return [
        Turn(d, 1, f'message {i}', more['persona'], label, reply, None, None, metrics)
        for i, (d, reply, label, metrics) in enumerate(zip(numbers, replies, labels, more['metrics'], strict=True))
    ]


def test_rows_that_differ_in_every_dialogue_are_significant_and_equal_ones_are_not(project):
    good, bad = turns_of(['a b c d'] * 20), turns_of(['a x y z'] * 20)
    p = project.significance.p_values([good, good], [bad, bad])
    assert set(p) == WITHOUT_LOG | DIVERSITY
    assert all(p[name] <= 0.002 for name in WITHOUT_LOG)
    assert all(p[name] == 1 for name in DIVERSITY)  # both rows repeat one reply
    assert set(project.significance.p_values([good], [good]).values()) == {1.0}
    assert project.significance.p_values([good], [turns_of(['x'] * 19)]) == {}  # not the same messages


def test_other_replies_with_the_same_bleu_are_not_significant(project):
    one, other = turns_of(['x y z'] * 20), turns_of(['u v w'] * 20)
    assert project.significance.p_values([one], [other])['sacrebleu'] == 1


def test_dialogues_are_exchanged_whole(project):
    """Twenty turns that are all better are two observations in two dialogues, and ten in ten."""
    of = [[k // (20 // n) for k in range(20)] for n in (2, 10)]
    better, worse = (
        [[turns_of([reply] * 20, dialogues=dialogues)] for dialogues in of] for reply in ('a b c d', 'a x y z')
    )
    p = [project.significance.p_values(*pair)['unigram_f1'] for pair in zip(better, worse, strict=True)]
    assert p == pytest.approx([2 / 2**2, 2 / 2**10], abs=0.001)  # two of the 2ⁿ exchanges are as extreme


def test_a_log_in_another_order_is_the_same(project):
    rows = [turns_of([f'{word} {i}' for i in range(12)], dialogues=[i // 3 for i in range(12)]) for word in 'ab']
    moved = [turn._replace(dialogue=3 - turn.dialogue) for d in (3, 2, 1, 0) for turn in rows[0][3 * d : 3 * d + 3]]
    ours, theirs = [rows[0]], [rows[1]]
    assert project.significance.p_values([moved], theirs) == project.significance.p_values(ours, theirs)


@pytest.fixture(scope='module')
def drawn():
    """Two rows of two seeds each: six dialogues with 1 to 3 turns, logged metrics, and personas."""
    draw = random.Random(7)
    dialogues = [d for d in range(6) for _ in range(draw.randint(1, 3))]
    labels = [' '.join(draw.choices('abcdef', k=5)) for _ in dialogues]

    def seed(words):
        replies = [' '.join(draw.choices(words, k=draw.randint(1, 7))) for _ in dialogues]
        metrics = [{'loss': draw.random(), 'llen': len(label), 'c_score': draw.randint(-1, 1)} for label in labels]
        return turns_of(replies, labels, dialogues, persona=('b likes c',), metrics=metrics)

    return [seed('abcdef'), seed('abcdef')], [seed('aabg'), seed('aabg')]


def of_rows(row, name, m):
    """A metric of a row, computed by the package's own classes, mean over its seeds."""
    values = []
    for log in row:
        if name == 'ppl':
            values.append(sum(t.metrics['loss'] * t.metrics['llen'] for t in log))
        elif name == 'c_score':
            values.append(sum(t.metrics['c_score'] for t in log))
        elif name.startswith('ent'):
            values.append(NgramEntropy([t.reply for t in log], int(name[3:])).value())
        elif name == 'dist2_equal':
            grams = [g for t in log for g in itertools.pairwise(t.reply.split())]
            values.append(distinct_among(np.array([grams.count(g) for g in sorted(set(grams))], float), m))
        elif name == 'dist':
            values.append(Distinct([t.reply for t in log], (1, 2)).value())
        else:
            each = [dict(response_metrics(t.reply, [t.label], ' '.join(t.persona)))[name] for t in log]
            values.append(reduce(add, each).value())
    return float(np.mean(values))


@pytest.mark.parametrize(
    'name', ['unigram_f1', 'rougeL', 'persona_f1', 'c_score', 'ppl', 'dist1', 'dist', 'ent2', 'ent4', 'dist2_equal']
)
def test_the_test_is_that_of_all_exchanges(project, drawn, name):
    ours, theirs = drawn
    m = min(sum(max(len(t.reply.split()) - 1, 0) for t in log) for log in (*ours, *theirs))
    differences = []
    for exchanged in itertools.product((False, True), repeat=6):
        sides = [
            [[x if exchanged[x.dialogue] == flip else y for x, y in zip(*logs, strict=True)] for logs in pairs]
            for flip, pairs in (
                (False, list(zip(ours, theirs, strict=True))),
                (True, list(zip(ours, theirs, strict=True))),
            )
        ]
        differences.append(of_rows(sides[0], name, m) - of_rows(sides[1], name, m))
    null, observed = np.array(differences), differences[0]
    tolerance = 1e-9
    wanted = 2 * min(np.mean(null <= observed + tolerance), np.mean(null >= observed - tolerance))
    assert project.significance.p_values(ours, theirs)[name] == pytest.approx(min(1.0, wanted))


def test_equal_sums_in_another_order_of_seeds_are_equal(project, drawn):
    (one, two), _ = drawn
    assert project.significance.p_values([one, two], [two, one])['persona_f1'] == 1


def test_a_gain_of_the_selection_is_tested_against_none(project):
    """A row with one prompt has no such metric: the test is whether the gain of the other differs from 0."""

    def seed(gains):
        return turns_of(['a'] * 6, metrics=[{'loss': 1.0, 'llen': 2, **gains(i)} for i in range(6)])

    one = [seed(lambda i: {})]
    always, both_ways = [seed(lambda i: {'selected_gain': 0.1 + i})], [seed(lambda i: {'selected_gain': (-1) ** i})]
    p = [project.significance.p_values(several, one)['selected_gain'] for several in (always, both_ways)]
    assert p == [2 / 2**6, 1]
    without = [turn._replace(metrics=None) for turn in one[0]]
    assert 'selected_gain' not in project.significance.p_values(always, [without])


def test_metrics_that_some_replies_lack_are_not_tested(project, drawn):
    ours, theirs = drawn
    assert {'c_score', 'ppl'} <= project.significance.p_values(ours, theirs).keys()
    without = [turn._replace(metrics=None) for turn in theirs[0]]
    assert 'ppl' not in project.significance.p_values(ours, [without, theirs[1]])


def test_chance_alone_is_seldom_significant(project):
    """Of 15 pairs of rows without a difference hardly more than three have p < 0.05."""
    draw = random.Random(1)
    found = 0
    for _ in range(15):
        rows = [turns_of([' '.join(draw.choices('abcde', k=4)) for _ in range(8)]) for _ in range(2)]
        found += project.significance.p_values(*[[row] for row in rows])['unigram_f1'] < 0.05
    assert binomtest(found, 15, 0.05, 'greater').pvalue > 0.001
