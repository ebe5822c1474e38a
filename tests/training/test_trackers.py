"""The views that TensorBoard and Weights & Biases get besides ParlAI's curves."""

import sys
from types import SimpleNamespace

import pytest
import torch

from spt_parlai.training.trackers import CHARTS, TensorBoard, WeightsAndBiases, histograms_of, rows_of, trackers_of

CONTEXT = {
    'persona': ['i like tea.'],
    'dialogue': ['hi', 'hello', 'so ?'],
    'label': 'x',
    'scores': [0.1, 0.3],
    'selected': 1,
    'replies': ['a | b', 'c'],
}


class Recorder:
    """Notes every call: (name of the method, arguments)."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args, **named: self.calls.append((name, args, named))


def test_rows_and_histograms():
    rows = rows_of([CONTEXT])
    assert [(row['prompt'], row['selected'], row['reply']) for row in rows] == [(0, False, 'a | b'), (1, True, 'c')]
    assert rows[0]['context'] == 'i like tea. / hi / hello / so ?'
    prompts = torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]]])
    assert histograms_of(prompts, [CONTEXT, CONTEXT]) == {
        'token_norms/prompt_0': [5.0],
        'token_norms/prompt_1': [2.0],
        'scores/prompt_0': [0.1, 0.1],
        'scores/prompt_1': [0.3, 0.3],
    }
    assert histograms_of(prompts[:1, :0], []) == {}  # an agent without prompts


def test_tensorboard_text_is_a_table():
    writer = Recorder()
    TensorBoard(writer).validated(7, {}, {'h': [1.0]}, rows_of([CONTEXT]))
    (histogram, (h, _, step), _), (text, (name, table, _), _) = writer.calls
    assert (histogram, h, step, text, name) == ('add_histogram', 'h', 7, 'add_text', 'replies')
    header, line, first, second = table.split('\n')
    assert header == '| context | prompt | score | selected | reply |' and first.endswith(r'| False | a \| b |')


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package: what is made of it are tuples with its names."""
    module = SimpleNamespace(
        Histogram=lambda values: ('Histogram', values),
        Table=lambda columns, data: ('Table', columns, data),
        plot=SimpleNamespace(line_series=lambda xs, ys, keys, title, xname: (xs, ys, keys)),
    )
    monkeypatch.setitem(sys.modules, 'wandb', module)


def test_weights_and_biases_get_several_numbers_in_one_chart(wandb):
    run = Recorder()
    (tracker,) = trackers_of(SimpleNamespace(wb_logger=SimpleNamespace(run=run)))
    assert isinstance(tracker, WeightsAndBiases)
    reports = {
        'train': [{'parleys': 1, 'ppl': 9.0}, {'parleys': 2, 'ppl': 8.0}],
        'valid': [
            {'parleys': 2, 'ppl': 7.0, 'prompt_usage_0': 0.5, 'prompt_usage_1': 0.5, 'prompt_usage_entropy': 1.0}
        ],
    }
    tracker.validated(2, reports, {'h': [1.0]}, rows_of([CONTEXT]))
    ((name, (shown,), _),) = run.calls
    assert name == 'log' and shown['custom_step'] == 2 and shown['h'] == ('Histogram', [1.0])
    assert shown['charts/perplexity'] == ([[1, 2], [2]], [[9.0, 8.0], [7.0]], ['ppl/train', 'ppl/valid'])
    assert shown['charts/prompt use'][2] == ['prompt_usage_0/valid', 'prompt_usage_1/valid']  # without the entropy
    assert 'charts/losses' not in shown and set(shown) - {'h', 'replies', 'custom_step'} <= {
        f'charts/{t}' for t in CHARTS
    }
    assert shown['replies'][2][1][-1] == 'c'
