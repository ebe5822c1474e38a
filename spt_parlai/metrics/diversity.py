"""How diverse the replies of an evaluation are: the formulas behind DIST, Ent-n and self-BLEU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
from sacrebleu.metrics import BLEU
from sacrebleu.metrics.helpers import extract_all_word_ngrams
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

ORDERS = BLEU().max_ngram_order
_tokenize = Tokenizer13a()


def ngrams(replies: Iterable[str], n: int) -> Iterator[tuple[str, ...]]:
    """The n-grams of all replies, words by white space."""
    # The shifted replies differ in length: an n-gram begins at every word that n − 1 others follow.
    words = (reply.split() for reply in replies)
    return chain.from_iterable(zip(*(reply[i:] for i in range(n)), strict=False) for reply in words)


def entropy(counts: np.ndarray) -> np.ndarray:
    """Entropy in nats of the shares that counts are of their sum. counts: float [..., V] → [...]; 0 where all are 0."""
    total = np.maximum(counts.sum(-1), 1)
    # −Σ (c / N) ln (c / N) = ln N − Σ c ln c / N
    return np.log(total) - (counts * np.log(np.maximum(counts, 1))).sum(-1) / total


def distinct_among(counts: np.ndarray, m: int) -> np.ndarray:
    """DIST at equal counts: expected distinct n-grams, as a percentage of m, of m that are drawn without putting back.

    It is the mean of DIST over all samples of m n-grams, known to ecologists as rarefaction (Hurlbert, 1971). A row of
    fewer than m n-grams is taken whole.

    :param counts: how often each of V n-grams occurs, float [..., V] → [...].
    :raises ValueError: if m is not positive.
    """
    from scipy.special import gammaln

    if m < 1:
        raise ValueError(f'the number of n-grams to draw is {m}; it must be at least 1')
    rows = counts.reshape(-1, counts.shape[-1]).astype(int)
    R, end = len(rows), 1 + rows.max(initial=0)
    # Few different counts occur, so the formula is evaluated for each of them and not for each n-gram.
    spectrum = np.bincount((np.arange(R)[:, None] * end + rows).ravel(), minlength=R * end).reshape(
        R, end
    )  # [R, count]
    times = 1 + np.flatnonzero(spectrum[:, 1:].any(0))  # [U]
    spectrum = spectrum[:, times]
    total = (spectrum * times).sum(-1, keepdims=True)
    drawn = np.minimum(total, m)
    left = total - times  # an n-gram is missed if all that are drawn are others: C(left, drawn) / C(total, drawn)
    possible = left >= drawn
    log_missed = gammaln(left + 1) - gammaln(np.where(possible, left - drawn, 0) + 1)
    log_missed += gammaln(total - drawn + 1) - gammaln(total + 1)
    found = np.where(possible, -np.expm1(np.where(possible, log_missed, 0)), 1.0)
    return (100 * (spectrum * found).sum(-1) / np.maximum(drawn[:, 0], 1)).reshape(counts.shape[:-1])


def self_bleu(replies: Sequence[str]) -> list[float]:
    """Every reply's sentence BLEU of sacrebleu (`eff:yes|tok:13a|smooth:exp`) against all others; [] for one reply.

    A reply's n-gram counts as often as another reply has it at most, so the two highest counts of each n-gram are all
    that must be known of the others.
    """
    if len(replies) < 2:
        return []
    counted, lengths = zip(*(extract_all_word_ngrams(_tokenize(reply), 1, ORDERS) for reply in replies), strict=True)
    highest: dict[tuple[str, ...], tuple[int, int, int]] = {}  # count, whose it is, and the second highest count
    for i, counts in enumerate(counted):
        for gram, count in counts.items():
            best, owner, second = highest.get(gram, (0, -1, 0))
            highest[gram] = (count, i, best) if count > best else (best, owner, max(second, count))
    of_length: Counter[int] = Counter(lengths)
    scores = []
    for i, (counts, length) in enumerate(zip(counted, lengths, strict=True)):
        matched, total = [0] * ORDERS, [0] * ORDERS
        for gram, count in counts.items():
            best, owner, second = highest[gram]
            matched[len(gram) - 1] += min(count, second if owner == i else best)
            total[len(gram) - 1] += count
        others = (other for other, times in of_length.items() if times > (other == length))
        closest = min(others, key=lambda other: (abs(other - length), other))
        score = BLEU.compute_bleu(matched, total, length, closest, smooth_method='exp', effective_order=True)
        scores.append(score.score)
    return scores
