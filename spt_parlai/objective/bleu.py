"""Sentence BLEU of every pair of a batch at once: the numbers sacrebleu gives, without its loop over pairs.

A pair's BLEU needs its clipped matches for each order: Σ_g min(count of g in m, count of g in n) over the n-grams g.
Number the occurrences of g within a text 0, 1, 2, …; the minimum is then the number of (g, number) items that the two
texts share. With a matrix X [B, items] that is 1 where a text has the item, the clipped matches of all pairs are X Xᵀ,
a sparse product of integers, which is exact.

The tokenizer is sacrebleu's own, applied word by word so that its cache serves every text. A word is what single blanks
separate. Tokenizing by words gives the same tokens as tokenizing the whole text: no pattern that 13a deletes, unescapes
or splits contains a blank except at its edges, and of the three blanks that its first rule makes of one, no rule takes
more than the outermost on either side. Line breaks are removed, or become blanks within a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, count

import numpy as np
from sacrebleu.metrics import BLEU
from scipy.sparse import csr_array

_bleu = BLEU(tokenize='13a', effective_order=True)
ORDERS = _bleu.max_ngram_order
WORDS_KEPT = 100_000  # up to this many words stay tokenized from batch to batch


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

    Effective order: only the orders of which the hypothesis has n-grams count. Smoothing 'exp': among these, the k-th
    order without a match counts 2⁻ᵏ matches.
    """
    total = (length - np.arange(ORDERS)[:, None]).clip(min=0)[:, :, None]  # [ORDERS, B, 1], n-grams of the hypothesis
    missed = np.cumsum(matches == 0, axis=0)
    precision = np.where(matches, matches, 0.5**missed) / total.clip(min=1)
    orders = (total > 0).sum(0).clip(min=1)
    mean_log = np.log(100 * precision).sum(0, where=total > 0) / orders
    brevity = np.minimum(1 - length / length[:, None].clip(min=1), 0)  # log of the brevity penalty
    return np.where(matches[0], np.exp(brevity) * np.exp(mean_log), 0.0)


class _TokenIds(dict):
    """Word → ids of its tokens, which are assigned when a word is first seen."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.new_id = count()

    def __missing__(self, word: str) -> list[int]:
        self[word] = ids = [self.ids.setdefault(token, next(self.new_id)) for token in _bleu.tokenizer(word).split()]
        return ids


_known = _TokenIds()


def _tokenize(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(token ids of all texts, one text after the other, int64 [T]; number of tokens of each text, int64 [B])."""
    global _known
    if len(_known) > WORDS_KEPT:
        _known = _TokenIds()  # ids must agree within a batch only
    ids_of = _known.__getitem__
    rows = [list(chain.from_iterable(map(ids_of, text.rstrip().split(' ')))) for text in texts]
    length = np.array([len(row) for row in rows], np.int64)
    return np.fromiter(chain.from_iterable(rows), np.int64, length.sum()), length


def _occurrences(tokens: np.ndarray, length: np.ndarray) -> Iterator[csr_array]:
    """For each order, a matrix int32 [B, T] that is 1 where text b has the item (n-gram, its number within b).

    After sorting by n-gram, the occurrences of an n-gram form a run, in which each text has a stretch. The start of the
    run identifies the n-gram, and start + place in the stretch identifies the item.
    """
    T, V = len(tokens), tokens.max(initial=0) + 1
    text = np.repeat(np.arange(len(length)), length)
    left = np.repeat(np.cumsum(length), length) - np.arange(T)  # number of tokens from here to the end of the text
    gram = np.zeros(T, np.int64)  # identifies the (n−1)-gram that begins here
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
    """For each place, the index at which its run of equal values begins."""
    begins = np.flatnonzero(np.diff(values, prepend=-1))
    return np.repeat(begins, np.diff(begins, append=len(values)))
