"""Ent-n, DIST at equal counts and self-BLEU, against naive computations and sacrebleu."""

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from spt_parlai.metrics.corpus import NgramEntropy, SelfBleu
from spt_parlai.metrics.diversity import distinct_among, entropy, ngrams, self_bleu

WORDS = ('i', 'like', 'tea', '.', "don't", 'dogs,', 'cats')


@pytest.fixture(scope='module')
def replies():
    draw = random.Random(3)
    said = [' '.join(draw.choices(WORDS, k=draw.randrange(0, 8))) for _ in range(60)]
    return [*said, said[1], 'purple', '']


def counts_of(replies, n):
    return np.array(list(Counter(ngrams(replies, n)).values()), dtype=float)


def test_ngrams_do_not_cross_replies():
    assert list(ngrams(['a b c', '', 'd e'], 2)) == [('a', 'b'), ('b', 'c'), ('d', 'e')]


@pytest.mark.parametrize('n', [2, 4])
def test_entropy_is_that_of_all_ngrams_together(replies, n):
    shares = [c / counts_of(replies, n).sum() for c in counts_of(replies, n)]
    assert NgramEntropy(replies, n).value() == pytest.approx(-math.fsum(p * math.log(p) for p in shares), rel=1e-12)


def test_entropy_of_equal_counts_is_a_logarithm_and_of_none_zero():
    assert entropy(np.array([[3.0, 3, 3], [5, 0, 0], [0, 0, 0]])).tolist() == pytest.approx([math.log(3), 0, 0])
    assert NgramEntropy(['yes'], 2).value() == 0


@pytest.mark.parametrize('m', [1, 2, 5, 9])
def test_distinct_among_is_the_mean_over_all_samples(m):
    counts = [4, 1, 3, 1, 0]
    grams = [gram for gram, count in enumerate(counts) for _ in range(count)]
    samples = [len(set(chosen)) / m for chosen in itertools.combinations(grams, m)]
    wanted = 100 * math.fsum(samples) / len(samples)
    assert float(distinct_among(np.array(counts, float), m)) == pytest.approx(wanted, rel=1e-12)


def test_distinct_among_all_is_dist_and_fewer_are_taken_whole(replies):
    counts = counts_of(replies, 2)
    dist = 100 * len(counts) / counts.sum()
    assert distinct_among(counts, int(counts.sum())) == pytest.approx(dist)
    assert distinct_among(np.stack([counts, 10 * counts]), 10**6)[0] == pytest.approx(dist)
    assert distinct_among(np.zeros(3), 5) == 0
    with pytest.raises(ValueError, match='at least 1'):
        distinct_among(counts, 0)


def test_at_equal_counts_more_of_the_same_text_is_not_less_diverse(replies):
    once, thrice = counts_of(replies, 1), counts_of(replies * 3, 1)
    m = int(once.sum()) // 2
    assert distinct_among(thrice, m) == pytest.approx(distinct_among(once, m), rel=0.05)
    assert len(thrice) / thrice.sum() == pytest.approx(len(once) / once.sum() / 3)


def test_self_bleu_is_sacrebleus_against_all_others(replies):
    library = BLEU(effective_order=True)
    wanted = [
        library.sentence_score(reply, replies[:i] + replies[i + 1 :]).score if reply else 0
        for i, reply in enumerate(replies)
    ]
    assert self_bleu(replies) == pytest.approx(wanted, abs=1e-9)
    assert SelfBleu(replies).value() == pytest.approx(sum(wanted) / len(replies))


def test_self_bleu_of_the_same_replies_is_100_and_of_one_reply_0():
    assert self_bleu(['a b c d e'] * 3) == pytest.approx([100] * 3) and SelfBleu(['a b c d e']).value() == 0
    assert self_bleu(['a b c d e', 'v w x y z']) == [0, 0]
