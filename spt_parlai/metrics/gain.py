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
    """Mean over the columns of (report − baseline) / baseline, in percent. NaN if a column of the baseline is 0.

    :param baseline: the report of the prompt tuning run of the same LLM.
    :param columns: the metrics to average over; the paper's are the default.
    :raises KeyError: if one of the reports lacks a column.
    """
    gains = [float(report[name]) / float(baseline[name]) - 1 if float(baseline[name]) else math.nan for name in columns]
    return 100 * sum(gains) / len(gains)
