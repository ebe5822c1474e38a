"""The BLEU of all pairs at once is what sacrebleu gives pair by pair, on difficult texts and on dialogues."""

from __future__ import annotations

import importlib.util
import math
import os
import random
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU

from spt_parlai.objective import bleu
from spt_parlai.objective.bleu import pairwise_bleu
from spt_parlai.objective.similarity import similar_pairs

ROOT = Path(__file__).parents[2]
SHARED = os.environ.get('SPT_SHARED_DATA')
spec = importlib.util.spec_from_file_location('similarity_benchmark', ROOT / 'projects' / 'benchmark' / 'similarity.py')
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)

REFEREE = BLEU(tokenize='13a', effective_order=True)  # its own instance and caches
TOLERANCE = 1e-10  # on a scale of 0–100


def referee(hypothesis: str, reference: str) -> float:
    return REFEREE.sentence_score(hypothesis, [reference]).score


def all_pairs(texts) -> np.ndarray:
    return np.array([[referee(m, n) for n in texts] for m in texts]).reshape(len(texts), len(texts))


# what 13a treats apart: blanks of all kinds, what it deletes or unescapes, and periods, commas and dashes beside digits
PIECES = st.sampled_from(
    [
        ' ',
        '  ',
        '\t',
        '\n',
        '-\n',
        '\r\n',
        '\x0b',
        '\x1c',
        '\x85',
        '\xa0',
        '\u2028',
        '\u3000',
        '\u200b',
        '<skipped>',
        '<ski',
        'pped>',
        '&quot;',
        '&amp;',
        'quot;',
        '&lt;',
        '&',
        '-',
        '.',
        ',',
        '..',
        ',.',
        '!',
        '?',
        "'",
        '/',
        '(',
        '[',
        '{',
        '~',
        '`',
        '\\',
        '0',
        '3',
        '17',
        '٣',
        'a',
        'i',
        'tea',
        'like',
        'é',
        'ß',
        '世',
        '🙂',
        '’',
        'Q:',
        'R:',
        'given persona:',
    ]
)
tricky = st.lists(PIECES, max_size=14).map(''.join)
plain = st.lists(st.sampled_from('i you like like tea dogs . , !'.split()), max_size=12).map(' '.join)
anything = st.one_of(tricky, plain, st.text(max_size=20))
batches = st.lists(
    anything, max_size=6
).flatmap(  # with some of the texts again, whole and cut
    lambda texts: (
        st.lists(st.sampled_from(texts), max_size=2).map(lambda m: texts + m + [t[: len(t) // 2] for t in m])
        if texts
        else st.just(texts)
    )
)


@settings(max_examples=300, deadline=None)
@given(batches)
@example(['', ' ', '\n', '-\n', 'a', 'a b', 'a b c', 'a b c d', 'a a a a a', 'a-\n'])
@example(['the the the the', 'the the', 'the cat the cat the cat', 'the'])
def test_every_pair_has_its_sacrebleu_score(texts):
    scores = pairwise_bleu(texts)
    assert scores.shape == (len(texts), len(texts)) and scores.dtype == np.float64
    np.testing.assert_allclose(scores, all_pairs(texts), rtol=0, atol=TOLERANCE)


@settings(max_examples=500, deadline=None)
@given(st.lists(tricky | st.text(max_size=30), min_size=1, max_size=3))
def test_word_by_word_gives_the_tokens_of_the_whole(texts):
    ids, length = bleu._tokenize(texts)
    token = {i: t for t, i in bleu._known.ids.items()}
    expected = [REFEREE.tokenizer(text.rstrip()).split() for text in texts]
    assert length.tolist() == list(map(len, expected))
    assert [token[i] for i in ids.tolist()] == sum(expected, [])


def test_known_words_are_bounded_and_forgetting_them_changes_nothing(monkeypatch):
    monkeypatch.setattr(bleu, 'WORDS_KEPT', 20)
    monkeypatch.setattr(bleu, '_known', bleu._TokenIds())
    rng = random.Random(0)
    for _ in range(10):
        texts = [' '.join(f'w{rng.randrange(1000)}.' for _ in range(6)) for _ in range(4)]
        np.testing.assert_allclose(pairwise_bleu(texts), all_pairs(texts), rtol=0, atol=TOLERANCE)
        assert len(bleu._known) <= 20 + 4 * 6


def check_contexts(texts, pairs, threshold=20.0):
    """The given pairs (m, n), m < n, of one batch agree in their scores and in their sides of the threshold."""
    scores, similar = pairwise_bleu(texts), similar_pairs(texts, threshold)
    expected = np.array([referee(texts[m], texts[n]) for m, n in pairs])
    assert (expected > threshold).any() and (expected < threshold).any()
    found = np.array([scores[m, n] for m, n in pairs])
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert [similar[m, n].item() for m, n in pairs] == (expected > threshold).tolist()


def some_pairs(B, number):
    """Neighbours, most of which are turns of one dialogue, and pairs drawn from all texts."""
    rng = random.Random(1)
    near = [(m, m + rng.randint(1, 5)) for m in rng.sample(range(B - 5), min(B - 5, number // 2))]
    return near + [tuple(sorted(rng.sample(range(B), 2))) for _ in range(number - len(near))]


def test_contexts_of_the_sample_task():
    texts = benchmark.contexts(benchmark.SAMPLE, 240)
    assert len(texts) == 240
    assert any(n.startswith(m.removesuffix(' R:')) for m, n in pairwise(texts))  # turns of a dialogue
    check_contexts(texts, some_pairs(240, 1000))


@pytest.mark.skipif(not SHARED, reason='SPT_SHARED_DATA, the folder with real dialogues, is not set')
@pytest.mark.parametrize('fold', ['train', 'valid'])
def test_contexts_of_convai2(fold):
    texts = benchmark.contexts(Path(SHARED) / 'parlai_data' / 'ConvAI2' / f'{fold}_self_original_no_cands.txt', 400)
    check_contexts(texts, some_pairs(400, 1000))


@settings(max_examples=40, deadline=None)
@given(st.lists(plain | tricky, min_size=2, max_size=5))
def test_no_tie_turns(texts):
    """With Γ at each score that occurs, and at the floats beside it, similar means strictly above sacrebleu's float."""
    for m, n in product(range(len(texts)), repeat=2):
        if m < n:
            score = referee(texts[m], texts[n])
            assert not similar_pairs(texts, score)[m, n]
            assert not similar_pairs(texts, math.nextafter(score, 200))[m, n]
            if score:
                assert similar_pairs(texts, math.nextafter(score, -1))[m, n]


@pytest.mark.parametrize(
    'text', ['tea', 'i like', 'i like tea', 'i like tea .', benchmark.contexts(benchmark.SAMPLE, 5)[-1]]
)
def test_identical_texts_at_the_top_of_the_scale(text):
    """sacrebleu gives identical texts 100 or a hair more, depending on their length; its float decides."""
    assert similar_pairs([text, text], 100.0)[0, 1].item() is (referee(text, text) > 100)
    assert similar_pairs([text, text], 99.999)[0, 1]


def test_where_last_digits_differ_sacrebleu_decides():
    texts = benchmark.contexts(benchmark.SAMPLE, 60)
    scores = pairwise_bleu(texts)
    differ = [
        (m, n) for m, n in product(range(60), repeat=2) if m < n and 0 < scores[m, n] != referee(texts[m], texts[n])
    ]
    assert len(differ) > 50  # or this tests nothing
    for m, n in differ[:150]:
        pair, score = [texts[m], texts[n]], referee(texts[m], texts[n])
        assert not similar_pairs(pair, score)[0, 1]
        assert similar_pairs(pair, math.nextafter(score, 0))[0, 1]


@pytest.mark.parametrize('words', [100, 600, 700, 740, 760])
def test_hardly_any_similarity_is_above_zero(words):
    """With one word against many, the brevity penalty passes through the subnormal floats to 0."""
    texts = ['tea', ' '.join(['tea'] * words)]
    assert similar_pairs(texts, 0.0)[0, 1].item() is (referee(*texts) > 0)
