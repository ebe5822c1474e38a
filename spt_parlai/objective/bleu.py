"""Sentence BLEU of every pair of a batch at once: the numbers sacrebleu gives, without its loop over pairs.

A pair's BLEU needs its clipped matches, Σ_g min(count of g in m, count of g in n) over the n-grams g, for each order. Number the
occurrences of g within a text 0, 1, 2 …: the minimum is how many (g, number) two texts have in common. So with X [B, items], one
where a text has that item, all pairs' clipped matches of an order are X Xᵀ, a sparse product of integers, hence exact.

The tokenizer is sacrebleu's own, applied word by word so that its cache serves every text. Words here are what single blanks
separate, and for them it gives what it gives for the whole text: no pattern that 13a deletes, unescapes or splits holds a blank
anywhere but at its edge, and of the three blanks that its first rule makes of one, no rule takes more than the outermost on
either side. Line breaks are removed or become blanks within a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, count

import numpy as np
from sacrebleu.metrics import BLEU
from scipy.sparse import csr_array

_bleu = BLEU(tokenize='13a', effective_order=True)
ORDERS = _bleu.max_ngram_order
WORDS_KEPT = 100_000  # as long as no more are known, words stay tokenized from batch to batch


def sentence_bleu(hypothesis: str, reference: str) -> float:
    """Sentence BLEU on the 0–100 scale: 13a tokens, effective order, sacrebleu's default smoothing."""
    return _bleu.sentence_score(hypothesis, [reference]).score


def pairwise_bleu(texts: Sequence[str]) -> np.ndarray:
    """float64 [B, B]: `sentence_bleu(texts[m], texts[n])` in row m, column n, up to the last digits of its floats."""
    tokens, length = _tokenize(texts)
    matches = np.array([(X @ X.T).toarray() for X in _occurrences(tokens, length)])  # [order, B, B]
    return _score(matches, length)


def _score(matches: np.ndarray, length: np.ndarray) -> np.ndarray:
    """matches int [ORDERS, B, B], length int [B] tokens → BLEU [B, B], row = hypothesis.

    Effective order: only orders of which the hypothesis has n-grams. Smoothing 'exp': the k-th order without a match, of those
    the hypothesis has, counts 2⁻ᵏ matches.
    """
    total = (length - np.arange(ORDERS)[:, None]).clip(min=0)[:, :, None]  # [ORDERS, B, 1], the hypothesis' n-grams
    missed = np.cumsum(matches == 0, axis=0)
    precision = np.where(matches, matches, 0.5**missed) / total.clip(min=1)
    orders = (total > 0).sum(0).clip(min=1)
    mean_log = np.log(100 * precision).sum(0, where=total > 0) / orders
    brevity = np.minimum(1 - length / length[:, None].clip(min=1), 0)  # log of the penalty
    return np.where(matches[0], np.exp(brevity) * np.exp(mean_log), 0.0)


class _TokenIds(dict):
    """Word → ids of its tokens, given as words come along."""

    def __init__(self):
        self.ids: dict[str, int] = {}
        self.new_id = count()

    def __missing__(self, word: str) -> list[int]:
        self[word] = ids = [self.ids.setdefault(token, next(self.new_id)) for token in _bleu.tokenizer(word).split()]
        return ids


_known = _TokenIds()


def _tokenize(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """All texts' token ids, one after the other, int64 [T], and each text's number of tokens, int64 [B]."""
    global _known
    if len(_known) > WORDS_KEPT:
        _known = _TokenIds()  # ids need hold within a batch only
    ids_of = _known.__getitem__
    rows = [list(chain.from_iterable(map(ids_of, text.rstrip().split(' ')))) for text in texts]
    length = np.array([len(row) for row in rows], np.int64)
    return np.fromiter(chain.from_iterable(rows), np.int64, length.sum()), length


def _occurrences(tokens: np.ndarray, length: np.ndarray) -> Iterator[csr_array]:
    """For each order the matrix int32 [B, T] of ones where text b has the item (n-gram, number of its occurrence in b).

    Sorted by n-gram, an n-gram's occurrences are a run in which each text has a stretch: the run's start names the n-gram, and
    start + place in the stretch names the item.
    """
    T, V = len(tokens), tokens.max(initial=0) + 1
    text = np.repeat(np.arange(len(length)), length)
    left = np.repeat(np.cumsum(length), length) - np.arange(T)  # tokens from here to the text's end
    gram = np.zeros(T, np.int64)  # name of the (n−1)-gram that begins here
    for n in range(1, ORDERS + 1):
        begin = np.flatnonzero(left >= n)
        key = gram[begin] * V + tokens[begin + n - 1]
        order = np.argsort(key, kind='stable')  # stable: texts stay in order within an n-gram's run
        begin, key = begin[order], key[order]
        run, owner = _starts(key), text[begin]
        stretch = np.maximum(run, _starts(owner))
        gram[begin] = run
        item = run + np.arange(len(key)) - stretch
        yield csr_array((np.ones(len(key), np.int32), (owner, item)), shape=(len(length), T))


def _starts(values: np.ndarray) -> np.ndarray:
    """Index at which the run of equal values that each place lies in begins."""
    begins = np.flatnonzero(np.diff(values, prepend=-1))
    return np.repeat(begins, np.diff(begins, append=len(values)))
