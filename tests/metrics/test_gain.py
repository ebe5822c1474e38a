"""AVG↑ against the paper's own, from the rounded rows of its table 1."""

import math

import pytest

from spt_parlai.metrics.gain import TABLE_1, average_gain

ROWS = {  # prompt tuning, SPT: F1, BLEU, ROUGE-1, -2, -L, BERTScore F1, P, R, DIST-1, -2
    'OPT-125M': (
        (10.79, 1.61, 14.36, 2.67, 13.25, 53.15, 53.90, 52.91, 3.94, 13.67),
        (11.06, 2.22, 16.45, 3.60, 15.42, 54.86, 56.23, 53.91, 4.87, 17.38),
    ),
    'OPT-1.3B': (
        (8.16, 1.82, 11.48, 2.22, 10.29, 55.31, 57.12, 53.93, 4.87, 17.19),
        (9.94, 2.66, 13.74, 3.24, 12.38, 56.34, 58.08, 54.99, 4.93, 17.76),
    ),
    'OPT-2.7B': (
        (8.67, 1.77, 11.84, 2.30, 10.61, 56.25, 58.48, 54.49, 5.18, 18.61),
        (12.23, 3.11, 16.97, 4.37, 15.61, 57.96, 59.92, 56.45, 5.84, 20.76),
    ),
    'Llama2-7B': (
        (17.12, 1.99, 15.74, 4.07, 13.72, 52.30, 48.57, 57.11, 2.80, 12.91),
        (17.49, 2.80, 17.02, 4.48, 15.24, 54.66, 53.02, 57.14, 5.69, 22.86),
    ),
}


def named(row):
    return dict(zip(TABLE_1, row, strict=True))


@pytest.mark.parametrize('llm, gain', [('OPT-125M', 16.6), ('OPT-1.3B', 16.4), ('OPT-2.7B', 33.1), ('Llama2-7B', 26.6)])
def test_the_papers_gains(llm, gain):
    prompt_tuning, spt = map(named, ROWS[llm])
    assert round(average_gain(spt, prompt_tuning), 1) == gain
    assert average_gain(prompt_tuning, prompt_tuning) == 0


def test_of_chosen_columns():
    assert average_gain(
        {'dist1': 3.0, 'dist2': 1.0}, {'dist1': 2.0, 'dist2': 2.0}, ('dist1', 'dist2')
    ) == pytest.approx(0)
    assert math.isnan(average_gain({'dist1': 3.0}, {'dist1': 0.0}, ('dist1',)))
    with pytest.raises(KeyError, match='sacrebleu'):
        average_gain({'unigram_f1': 1.0}, {'unigram_f1': 1.0})
