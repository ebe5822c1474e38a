"""The figures that the paper reports in tables 1 to 12, in percent, to show beside the measured ones.

FIRST are the columns of its table 1, and FURTHER measures that it does not report.
"""

from __future__ import annotations

from spt_parlai.metrics.gain import TABLE_1 as FIRST
from spt_parlai.metrics.registry import REPLY_METRICS

SHORT = ('unigram_f1', 'sacrebleu', 'rougeL', 'bertscore_f1', 'dist')
OVERLAP = tuple(metric.name for metric in REPLY_METRICS if metric.name.startswith('persona_bleu'))
FURTHER = ('ent2', 'ent4', 'dist1_equal', 'dist2_equal', 'self_bleu', 'persona_f1', 'c_score', 'hits@1', 'mauve')
JUDGED = ('persona consistency', 'context consistency', 'engagingness')


def _row(columns: tuple[str, ...], text: str) -> dict[str, float]:
    return dict(zip(columns, map(float, text.split('/')), strict=True))


TABLE_1 = {
    'OPT-125M PT': _row(FIRST, '10.79/1.61/14.36/2.67/13.25/53.15/53.90/52.91/3.94/13.67'),
    'OPT-125M SPT': _row(FIRST, '11.06/2.22/16.45/3.60/15.42/54.86/56.23/53.91/4.87/17.38'),
    'OPT-1.3B PT': _row(FIRST, '8.16/1.82/11.48/2.22/10.29/55.31/57.12/53.93/4.87/17.19'),
    'OPT-1.3B SPT': _row(FIRST, '9.94/2.66/13.74/3.24/12.38/56.34/58.08/54.99/4.93/17.76'),
    'OPT-2.7B PT': _row(FIRST, '8.67/1.77/11.84/2.30/10.61/56.25/58.48/54.49/5.18/18.61'),
    'OPT-2.7B SPT': _row(FIRST, '12.23/3.11/16.97/4.37/15.61/57.96/59.92/56.45/5.84/20.76'),
    'Llama2-7B PT': _row(FIRST, '17.12/1.99/15.74/4.07/13.72/52.30/48.57/57.11/2.80/12.91'),
    'Llama2-7B SPT': _row(FIRST, '17.49/2.80/17.02/4.48/15.24/54.66/53.02/57.14/5.69/22.86'),
}
TABLE_1_GAIN = {'OPT-125M SPT': 16.60, 'OPT-1.3B SPT': 16.43, 'OPT-2.7B SPT': 33.04, 'Llama2-7B SPT': 26.62}
NAMES = {  # LLM id → name in the paper
    'facebook/opt-125m': 'OPT-125M',
    'facebook/opt-1.3b': 'OPT-1.3B',
    'facebook/opt-2.7b': 'OPT-2.7B',
    'meta-llama/Llama-2-7b-hf': 'Llama2-7B',
}
TABLE_2 = {
    'all losses': _row(SHORT, '17.49/2.80/15.24/54.66/14.27'),
    'without the contrastive loss': _row(SHORT, '15.95/2.00/13.17/52.80/14.23'),
    'without the fusion loss': _row(SHORT, '16.02/1.90/13.24/52.89/14.69'),
    'without the selection loss': _row(SHORT, '16.39/1.93/13.71/53.75/13.06'),
}
TABLE_3 = {
    1: _row(SHORT, '17.76/1.76/15.21/54.86/14.15'),
    2: _row(SHORT, '17.71/2.55/15.63/55.52/14.29'),
    3: _row(SHORT, '17.34/2.45/15.09/55.31/15.23'),
    4: _row(SHORT, '17.49/2.80/15.24/54.66/14.27'),
    5: _row(SHORT, '16.07/2.42/12.88/47.12/13.99'),
    6: _row(SHORT, '17.46/2.21/14.94/54.43/15.12'),
    7: _row(SHORT, '17.76/2.42/15.42/54.96/13.51'),
    8: _row(SHORT, '17.48/2.32/15.29/54.87/13.89'),
}
TABLE_4 = {  # and table 8
    'SPT': TABLE_1['Llama2-7B SPT'],
    'PT, 4 tokens': _row(FIRST, '16.47/1.78/15.74/3.74/13.64/52.65/49.09/57.18/3.35/15.70'),
    'PT, 8 tokens': _row(FIRST, '17.64/2.13/16.49/4.01/14.69/55.85/54.98/57.34/4.75/21.91'),
    'LoRA': _row(FIRST, '15.61/2.20/13.09/2.95/11.66/47.46/47.78/47.48/3.35/17.08'),
    'in-context (GPT-3.5)': _row(FIRST, '6.78/0.77/0.00/0.00/0.09/47.96/46.73/49.77/8.03/38.45'),
}
TABLE_5 = {'PT': _row(OVERLAP, '8.79/43.42/20.44/13.51/10.06'), 'SPT': _row(OVERLAP, '2.07/41.99/16.62/10.48/6.95')}
TABLE_7 = {'PT': _row(JUDGED, '1.33/1.13/1.29'), 'SPT': _row(JUDGED, '1.89/1.29/1.34')}
TABLE_9 = {
    'PT': _row(FIRST, '18.03/0.18/15.66/4.41/14.13/55.90/55.97/56.99/7.71/35.40'),
    'SPT': _row(FIRST, '18.38/0.31/15.87/4.49/14.37/56.95/57.21/57.73/7.97/36.89'),
}
TABLE_10 = {
    'RAG': _row((*FIRST, 'epoch_hours'), '15.16/2.53/11.53/2.86/10.56/50.52/50.70/51.12/5.75/26.83/14'),
    'SPT': {**TABLE_1['Llama2-7B SPT'], 'epoch_hours': 7.0},
}
TABLE_11 = {
    0.0: TABLE_1['Llama2-7B SPT'],
    0.01: _row(FIRST, '17.42/2.97/16.93/4.49/15.18/54.70/53.45/56.71/5.42/22.55'),
    0.05: _row(FIRST, '17.41/2.98/16.91/4.48/15.16/54.68/53.41/56.71/5.41/22.56'),
    0.1: _row(FIRST, '17.42/2.93/16.91/4.44/15.17/54.75/53.46/56.78/5.46/22.86'),
    0.5: _row(FIRST, '17.41/2.99/16.92/4.49/15.16/54.93/53.56/57.03/5.61/24.04'),
    1.0: _row(FIRST, '17.43/2.76/16.72/4.32/15.03/54.82/53.38/57.00/5.56/24.15'),
}
NAN = dict.fromkeys(FIRST, float('nan'))
TABLE_12 = {
    0.0: TABLE_1['Llama2-7B SPT'],
    0.001: _row(FIRST, '17.69/2.75/17.11/4.46/15.38/54.94/53.41/57.19/5.54/23.83'),
    0.01: NAN,
    0.1: NAN,
    1.0: NAN,
}
