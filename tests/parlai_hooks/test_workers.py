"""With `--num-workers` a run has the batches, the steps, the counts and the epochs that it has without."""

import json
from pathlib import Path

import pytest
from helpers.runs import SAMPLE, logged, train

from spt_parlai.agents import SptAgent

PAIR = f'{SAMPLE},integration_tests:nocandidate'
SHORT = {'log_every_n_steps': 1, 'validation_max_exs': 4, 'num_prompts': 1}


def run(model_file, llm, workers: int, **more):
    """Train; returns the number of steps, the epochs, the losses and the turns of each step."""
    train(model_file, llm, num_workers=workers, **{**SHORT, **more})
    stats = json.loads(Path(f'{model_file}.trainstats').read_text())
    reports = stats['train_reports']
    turns = [report['exs'] for report in reports if 'exs' in report]
    return stats['train_steps'], stats['total_epochs'], logged(model_file), turns


@pytest.mark.parametrize(
    ('more', 'steps'),
    [
        ({'num_epochs': 1, 'batchsize': 6}, 13),  # 74 dialogues
        ({'num_epochs': 1, 'batchsize': 6, 'datatype': 'train:ordered'}, 13),
        ({'num_epochs': 0.15, 'dynamic_batching': 'full'}, None),
        ({'num_epochs': 0.1, 'dialogue_packing': False, 'update_freq': 2}, None),  # 496 turns
        ({'num_epochs': 0.1, 'task': PAIR}, None),
        ({'num_epochs': 0.1, 'batchsize': 1}, 8),
    ],
    ids=['packed', 'ordered', 'dynamic', 'turn by turn', 'two tasks', 'one by one'],
)
def test_one_worker_gives_the_run_that_none_gives(tiny_llms, tmp_path, more, steps):
    """Equal to the last bit; the whole of an epoch, although each message holds all turns of a dialogue."""
    without = run(tmp_path / '0', tiny_llms.opt, 0, **more)
    assert run(tmp_path / '1', tiny_llms.opt, 1, **more) == without
    assert steps in (None, without[0]) and without[1] == pytest.approx(more['num_epochs'], rel=0.2)


def test_two_workers_have_different_data(tiny_llms, tmp_path, monkeypatch):
    drawn = []
    train_step = SptAgent.train_step

    def record(self, batch):
        drawn.append(tuple(batch.texts['context']))
        return train_step(self, batch)

    monkeypatch.setattr(SptAgent, 'train_step', record)
    more = {'num_epochs': 0.5, 'batchsize': 6}
    steps, epochs, _, _ = run(tmp_path / '2', tiny_llms.opt, 2, **more)
    assert steps == 7 and epochs == pytest.approx(7 * 6 / 74)
    assert len(drawn) == len(set(drawn)) == 7


def test_workers_share_data_with_an_order(tiny_llms, tmp_path):
    more = {'num_epochs': 0.5, 'batchsize': 6, 'datatype': 'train:ordered'}
    assert run(tmp_path / '3', tiny_llms.opt, 3, **more) == run(tmp_path / '0', tiny_llms.opt, 0, **more)


@pytest.mark.parametrize('workers', [1, 2])
def test_a_stopped_run_continues_exactly(tiny_llms, tmp_path, workers):
    """It was stopped after three steps of eight."""
    steps, _, whole, turns = run(tmp_path / 'whole', tiny_llms.opt, workers, max_train_steps=8)
    run(tmp_path / 'stopped', tiny_llms.opt, workers, max_train_steps=3)
    continued = run(tmp_path / 'stopped', tiny_llms.opt, workers, max_train_steps=8)
    assert steps == continued[0] == 8
    assert {step: loss for step, loss in continued[2].items() if step > 3} == {
        step: loss for step, loss in whole.items() if step > 3
    }
