"""Do two rows of a table differ by more than chance? Paired tests of the replies to the same messages.

The turns of a dialogue depend on each other, so whole dialogues are exchanged between the rows, with all their seeds,
and every metric is computed anew: scipy's permutation test. BLEU is tested as its users do, by sacrebleu's paired
approximate randomization, which exchanges single replies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest
from scipy.sparse import csr_array
from scipy.stats import permutation_test

from spt_parlai.dashboard.world_logs import Turn
from spt_parlai.metrics.diversity import distinct_among, entropy, ngrams
from spt_parlai.metrics.reply import ROUGES, persona_f1, rouge, unigram_f1

RESAMPLES = 999
BATCH = 64  # resamples at a time, whose n-grams are counted in one matrix
OF_REPLIES = {  # what can be computed from a turn, where its log has no metrics
    'unigram_f1': lambda turn: 100 * unigram_f1(turn.reply, (turn.label,)),
    **{name: lambda turn, name=name: 100 * rouge(turn.reply, (turn.label,))[name] for name in ROUGES},
    'persona_f1': lambda turn: 100 * persona_f1(turn.reply, ' '.join(turn.persona)),
}
OF_SEVERAL_PROMPTS = ('selected_gain', 'best_gain')  # where there is nothing to select, nothing is gained
OF_THE_PERSONA = ('persona_f1', 'c_score')  # which replies of speakers without a persona lack
LOGGED = (
    'bertscore_f1',
    'bertscore_p',
    'bertscore_r',
    'meteor',
    'hits@1',
    'token_acc',
    'self_bleu',
    'c_score',
    *OF_SEVERAL_PROMPTS,
)
OF_THE_NLL = ('loss', 'llen')  # nats per token of the label, and its tokens
ORDERS = (1, 2, 4)
Log = Sequence[Turn]


def p_values(ours: Sequence[Log], theirs: Sequence[Log], equal: Mapping[int, int] | None = None) -> dict[str, float]:
    """Metric → two-sided p that two rows differ, for BLEU, DIST, Ent-n, and means over replies or (ppl) tokens.

    The self-BLEU of a reply is that within its own row.

    :param ours, theirs: the world logs of the rows' seeds. Both are of the same dialogues, in any order; otherwise
        there is no test.
    :param equal: n → number of n-grams for DIST at equal counts (default: as many as both rows have).
    """
    ours, theirs = [in_order(log) for log in ours], [in_order(log) for log in theirs]
    messages = {tuple((turn.dialogue, turn.said, turn.label) for turn in log) for log in (*ours, *theirs)}
    if not ours or len(ours) != len(theirs) or len(messages) != 1 or not ours[0]:
        return {}
    return {**_of_dialogues(ours, theirs, equal or {}), 'sacrebleu': _of_bleu(ours, theirs)}


def tested(metrics: Mapping[str, float] | None) -> dict[str, float] | None:
    """Those of a reply's metrics that the tests look at."""
    used = (*OF_REPLIES, *LOGGED, *OF_THE_NLL)
    return None if metrics is None else {name: metrics[name] for name in used if name in metrics}


def in_order(log: Log) -> list[Turn]:
    """The dialogues of a log sorted by their messages and numbered anew: a log's order depends on the batch size."""
    dialogues = [list(turns) for _, turns in groupby(log, key=lambda turn: turn.dialogue)]
    dialogues.sort(key=lambda turns: [(turn.said, turn.label) for turn in turns])
    return [turn._replace(dialogue=d) for d, turns in enumerate(dialogues) for turn in turns]


def score_of(turn: Turn, name: str) -> float | None:
    """A metric of one reply: from its log or, for `OF_REPLIES`, its text; None if it has none."""
    metrics = turn.metrics or {}
    if name in metrics:
        return metrics[name]
    if 'loss' in metrics and name in OF_SEVERAL_PROMPTS:
        return 0.0
    if name not in OF_REPLIES or (name in OF_THE_PERSONA and not turn.persona):
        return None
    return OF_REPLIES[name](turn)


# ---- whole dialogues are exchanged ---------------------------------------------------------------------------


def _of_dialogues(ours: Sequence[Log], theirs: Sequence[Log], equal: Mapping[int, int]) -> dict[str, float]:
    """One permutation test of all metrics at once. Each resample gives our row D of the 2·D dialogues."""
    D = 1 + ours[0][-1].dialogue
    found = {name: d for name in (*OF_REPLIES, *LOGGED, 'ppl') if (d := _differences(ours, theirs, name)) is not None}
    names, differences = list(found), np.array(list(found.values())).reshape(len(found), D)
    signed = np.concatenate([differences, -differences], axis=1)  # [means, 2·D]: a dialogue that is theirs counts less
    counted = {n: [_counts(a, b, n) for a, b in zip(ours, theirs, strict=True)] for n in ORDERS}
    equal = {n: equal.get(n) or _smallest(counted[n], D) for n in (1, 2)}

    def statistic(mine: np.ndarray, _: np.ndarray, axis: int) -> np.ndarray:
        """mine: int [..., D], the dialogues of our row, of 0 … 2·D − 1 → float [..., metrics]."""
        rows = mine.reshape(-1, D)
        means = signed.T[rows].sum(1)  # [R, means]
        diversity = np.mean([_diversity(rows, {n: counted[n][s] for n in ORDERS}, equal) for s in range(len(ours))], 0)
        return np.concatenate([means, diversity], axis=1).reshape(*mine.shape[:-1], -1)

    names += DIVERSITY
    if D < 2:
        return dict.fromkeys(names, 1.0)
    units = np.arange(D)
    result = permutation_test(
        (units, units + D),
        statistic,
        permutation_type='samples',
        n_resamples=RESAMPLES,
        batch=BATCH,
        vectorized=True,
        rng=0,
    )
    return dict(zip(names, np.asarray(result.pvalue).tolist(), strict=True))


def _differences(ours: Sequence[Log], theirs: Sequence[Log], name: str) -> np.ndarray | None:
    """Ours less theirs, summed over the turns of each dialogue and the seeds: float [D]; None if replies lack it."""
    totals = np.zeros((2, 1 + ours[0][-1].dialogue))
    seen = False
    for side, logs in zip(totals, (ours, theirs), strict=True):
        for log in logs:
            for turn in log:
                score = _nll(turn) if name == 'ppl' else score_of(turn, name)
                if score is None and name not in OF_THE_PERSONA:
                    return None
                seen |= score is not None
                side[turn.dialogue] += score or 0.0
    difference = totals[0] - totals[1]
    difference[np.abs(difference) < 1e-9 * np.abs(totals).max()] = 0  # what rounding leaves of equal sums
    return difference if seen else None


def _nll(turn: Turn) -> float | None:
    """The NLL of a label. Both rows must have the same tokens, as they do around the same LLM."""
    metrics = turn.metrics or {}
    return math.prod(metrics[name] for name in OF_THE_NLL) if {*OF_THE_NLL} <= metrics.keys() else None


DIVERSITY = ('dist1', 'dist2', 'dist', 'ent2', 'ent4', 'dist1_equal', 'dist2_equal')


def _diversity(rows: np.ndarray, counted: Mapping[int, csr_array], equal: Mapping[int, int]) -> np.ndarray:
    """Ours less theirs of `DIVERSITY` for one seed: int [R, D] → float [R, 7]."""
    R, D = rows.shape
    chosen = csr_array((np.ones(R * D), rows.ravel(), np.arange(0, R * D + 1, D)), shape=(R, 2 * D))
    sides = []
    both = {n: counts.sum(axis=0) for n, counts in counted.items()}
    mine = {n: (chosen @ counts).toarray() for n, counts in counted.items()}  # [R, V]
    for of in (mine, {n: both[n] - mine[n] for n in counted}):
        dist = {n: 100 * (of[n] > 0).sum(-1) / np.maximum(of[n].sum(-1), 1) for n in (1, 2)}
        alike = [distinct_among(of[n], equal[n]) for n in (1, 2)]
        sides.append([dist[1], dist[2], (dist[1] + dist[2]) / 2, entropy(of[2]), entropy(of[4]), *alike])
    return (np.array(sides[0]) - np.array(sides[1])).T


def _counts(ours: Log, theirs: Log, n: int) -> csr_array:
    """How often each of V n-grams is in each dialogue, first ours and then theirs: float [2·D, V]."""
    number: dict[tuple[str, ...], int] = {}
    columns, ends = [], [0]
    for log in (ours, theirs):
        for _, turns in groupby(log, key=lambda turn: turn.dialogue):
            columns += [number.setdefault(gram, len(number)) for gram in ngrams((turn.reply for turn in turns), n)]
            ends.append(len(columns))
    counts = csr_array((np.ones(len(columns)), columns, ends), shape=(len(ends) - 1, max(len(number), 1)))
    counts.sum_duplicates()
    return counts


def _smallest(counts: Sequence[csr_array], D: int) -> int:
    return max(1, int(min(min(of_seed[:D].sum(), of_seed[D:].sum()) for of_seed in counts)))


# ---- single replies are exchanged ----------------------------------------------------------------------------


def _of_bleu(ours: Sequence[Log], theirs: Sequence[Log]) -> float:
    replies = [[turn.reply for log in logs for turn in log] for logs in (theirs, ours)]
    labels = [turn.label for log in ours for turn in log]
    test = PairedTest(
        [('theirs', replies[0]), ('ours', replies[1])],
        {'BLEU': BLEU(tokenize='13a', smooth_method='exp', force=True)},  # force: no warning of tokenized text
        [labels],
        test_type='ar',
        n_samples=RESAMPLES,
    )
    theirs_and_ours = test()[1]['BLEU']
    if theirs_and_ours[0].score == theirs_and_ours[1].score:  # which sacrebleu would call significant
        return 1.0
    return float(theirs_and_ours[1].p_value)
