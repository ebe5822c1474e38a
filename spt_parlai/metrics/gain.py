"""AVG↑ of the paper's table 1: how much better one run is than another, over all metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

TABLE_1 = (
    'unigram_f1',
    'sacrebleu',
    'rouge1',
    'rouge2',
    'rougeL',
    'bertscore_f1',
    'bertscore_p',
    'bertscore_r',
    'dist1',
    'dist2',
)


def average_gain(report: Mapping[str, float], baseline: Mapping[str, float], columns: Sequence[str] = TABLE_1) -> float:
    """Mean over the columns of (report − baseline) / baseline, in percent.

    :param baseline: the prompt tuning run of the same LLM; NaN is the answer where one of its columns is 0.
    :param columns: metrics to take; the paper's are the default.
    :raises KeyError: where one of them is in neither report.
    """
    gains = [float(report[name]) / float(baseline[name]) - 1 if float(baseline[name]) else math.nan for name in columns]
    return 100 * sum(gains) / len(gains)
