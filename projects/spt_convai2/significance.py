"""Do two rows of a table differ by more than chance? Paired tests of the replies to the same messages.

The turns of a dialogue depend on each other, so whole dialogues are exchanged between the rows, with all their seeds:
scipy's permutation test for the means over replies and for DIST. BLEU is tested as its users do, by sacrebleu's paired
approximate randomization, which exchanges single replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest
from scipy.stats import permutation_test

from spt_parlai.dashboard.world_logs import Turn
from spt_parlai.metrics.reply import ROUGES, rouge, unigram_f1

RESAMPLES = 999
MEANS = {
    'unigram_f1': unigram_f1,
    **{name: lambda reply, references, name=name: rouge(reply, references)[name] for name in ROUGES},
}
Log = Sequence[Turn]


def p_values(ours: Sequence[Log], theirs: Sequence[Log]) -> dict[str, float]:
    """Metric → two-sided p that two rows differ, for those of `MEANS`, `sacrebleu`, `dist1` and `dist2`.

    :param ours, theirs: the world logs of the rows' seeds. Both are of the same dialogues; otherwise there is no test.
    """
    messages = {tuple((turn.dialogue, turn.said, turn.label) for turn in log) for log in (*ours, *theirs)}
    if not ours or len(ours) != len(theirs) or len(messages) != 1:
        return {}
    found = {name: _of_means(ours, theirs, score) for name, score in MEANS.items()}
    return {**found, 'sacrebleu': _of_bleu(ours, theirs), **{f'dist{n}': _of_dist(ours, theirs, n) for n in (1, 2)}}


def _of_means(ours: Sequence[Log], theirs: Sequence[Log], score) -> float:
    def sums(logs: Sequence[Log]) -> np.ndarray:  # [dialogues], over turns and seeds
        totals = np.zeros(1 + max(turn.dialogue for turn in logs[0]))
        for log in logs:
            for turn in log:
                totals[turn.dialogue] += score(turn.reply, (turn.label,))
        return totals

    return _test(sums(ours), sums(theirs), lambda a, b, axis: np.mean(a - b, axis=axis), vectorized=True)


def _of_bleu(ours: Sequence[Log], theirs: Sequence[Log]) -> float:
    replies = [[turn.reply for log in logs for turn in log] for logs in (theirs, ours)]
    if replies[0] == replies[1]:  # which sacrebleu would call significant
        return 1.0
    labels = [turn.label for log in ours for turn in log]
    test = PairedTest(
        [('theirs', replies[0]), ('ours', replies[1])],
        {'BLEU': BLEU(tokenize='13a', smooth_method='exp')},
        [labels],
        test_type='ar',
        n_samples=RESAMPLES,
    )
    return float(test()[1]['BLEU'][1].p_value)


def _of_dist(ours: Sequence[Log], theirs: Sequence[Log], n: int) -> float:
    number: dict[tuple[str, ...], int] = {}

    def ngrams(logs: Sequence[Log]) -> list[list[np.ndarray]]:  # of every dialogue for every seed, as numbers
        return [
            [
                np.array(
                    [
                        number.setdefault(gram, len(number))
                        for turn in turns
                        for words in [turn.reply.split()]
                        for gram in zip(*(words[i:] for i in range(n)), strict=False)
                    ],
                    dtype=int,
                )
                for _, turns in groupby(log, key=lambda turn: turn.dialogue)
            ]
            for log in logs
        ]

    both = [a + b for a, b in zip(ngrams(ours), ngrams(theirs), strict=True)]  # per seed: our dialogues, then theirs
    dialogues = len(both[0]) // 2

    def distinct(chosen: np.ndarray) -> float:
        shares = []
        for seed in both:
            grams = np.concatenate([seed[int(i)] for i in chosen])
            shares.append(np.count_nonzero(np.bincount(grams, minlength=1)) / max(len(grams), 1))
        return float(np.mean(shares))

    units = np.arange(dialogues)
    return _test(units, units + dialogues, lambda a, b: distinct(a) - distinct(b), vectorized=False)


def _test(ours: np.ndarray, theirs: np.ndarray, statistic, vectorized: bool) -> float:
    if len(ours) < 2:
        return 1.0
    result = permutation_test(
        (ours, theirs), statistic, permutation_type='samples', n_resamples=RESAMPLES, vectorized=vectorized, rng=0
    )
    return float(result.pvalue)
