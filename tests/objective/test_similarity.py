"""M(c_m, c_n) is sacrebleu's own sentence BLEU with the earlier example as hypothesis."""

from __future__ import annotations

import math

import pytest
import sacrebleu
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_parlai.objective.similarity import sentence_bleu, similar_pairs, similar_vectors

TEXTS = [
    'given persona: i like tea. i have a dog.; context: Q: hello ! how are you ? R:',
    'given persona: i like tea. i have a dog.; context: Q: hello ! how are you ? R: fine . Q: and now ? R:',
    "given persona: i'm a nurse.; context: Q: hi R:",
    'context: Q: hello R:',
    'tea',
    'I like tea, my dog; and (most of) the world’s 3,000.5 cats!',
    '',
    '',
]


def bleu(hypothesis: str, reference: str) -> float:
    return sacrebleu.sentence_bleu(
        hypothesis, [reference], smooth_method='exp', tokenize='13a', use_effective_order=True
    ).score


@pytest.mark.parametrize('hypothesis', TEXTS)
def test_sentence_bleu(hypothesis):
    for reference in TEXTS:
        assert sentence_bleu(hypothesis, reference) == bleu(hypothesis, reference)


words = st.lists(st.sampled_from('i you like tea dogs cats . , !'.split()), max_size=8).map(' '.join)


@settings(max_examples=60, deadline=None)
@given(st.lists(words, min_size=1, max_size=5), st.sampled_from([0.0, 5.0, 20.0, 60.0, 99.0]))
def test_similar_pairs(texts, threshold):
    similar = similar_pairs(texts, threshold)
    assert similar.dtype == torch.bool
    assert similar.tolist() == [
        [m < n and bleu(texts[m], texts[n]) > threshold for n in range(len(texts))] for m in range(len(texts))
    ]


def test_scale_and_direction():
    """It is 0–100 and not symmetric: a short hypothesis loses by its brevity, a long one by what it adds."""
    long, short = TEXTS[1], TEXTS[0]
    assert sentence_bleu(short, short) == pytest.approx(100)
    forth, back = sentence_bleu(short, long), sentence_bleu(long, short)
    assert abs(forth - back) > 1
    threshold = (forth + back) / 2
    assert similar_pairs([short, long], threshold)[0, 1].item() is (forth > back)
    assert similar_pairs([long, short], threshold)[0, 1].item() is (back > forth)


def test_exceeding_the_threshold_is_strict():
    score = bleu(TEXTS[0], TEXTS[1])
    assert not similar_pairs(TEXTS[:2], score).any()
    assert similar_pairs(TEXTS[:2], score - 1e-6).tolist() == [[False, True], [False, False]]


def test_empty_texts_are_like_nothing():
    """If the text is the persona alone, no pair of dialogues without persona counts as similar."""
    assert sentence_bleu('', '') == sentence_bleu('', 'tea') == sentence_bleu('tea', '') == 0
    assert not similar_pairs(['', 'tea', ''], 0.0).any()


def test_a_batch_of_one():
    assert similar_pairs(['tea'], 20.0).tolist() == [[False]]


@pytest.mark.parametrize('threshold', [-1.0, 0.0, 0.3, 0.9, 1.0])
def test_similar_vectors(threshold):
    torch.manual_seed(0)
    vectors = torch.randn(6, 3)
    vectors[3] = 0  # a text without words
    rows = vectors.double().tolist()

    def cosine(a, b):
        norms = math.hypot(*a) * math.hypot(*b)
        return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0

    expected = [[m < n and cosine(rows[m], rows[n]) > threshold for n in range(6)] for m in range(6)]
    assert similar_vectors(vectors, threshold).tolist() == expected
