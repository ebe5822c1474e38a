"""What a run is told before its first step about the files that it begins from, or will be kept in."""

import json

import pytest
import torch
from helpers.runs import SMALL
from helpers.runs import train as train_at
from parlai.scripts.train_model import TrainModel
from parlai.utils import logging

from spt_parlai.errors import UsageError


@pytest.fixture
def train(tiny_llms):
    return lambda model_file, **options: train_at(model_file, tiny_llms.opt, **options)


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(logging, 'warning', lambda text: said.append(str(text)))
    return said


def test_without_a_model_file_the_run_is_kept_in_a_new_folder(tiny_llms, tmp_path, monkeypatch, warnings):
    monkeypatch.chdir(tmp_path)
    TrainModel.main(**SMALL, llm=tiny_llms.opt, max_train_steps=2)
    (kept,) = (tmp_path / 'runs').glob('*/model')
    assert torch.load(kept, weights_only=True)['number_training_updates'] == 2
    assert any(str(kept.relative_to(tmp_path)) in text and 'No --model-file' in text for text in warnings)


def test_a_damaged_best_model_is_told_before_training(train, tmp_path):
    train(tmp_path / 'm', max_train_steps=2, validation_every_n_steps=1, save_every_n_secs=0.001)
    whole = (tmp_path / 'm').read_bytes()
    (tmp_path / 'm.checkpoint').write_bytes(whole)
    (tmp_path / 'm').write_bytes(whole[:500])
    with pytest.raises(UsageError, match='m is damaged.*m.checkpoint is whole: without'):
        train(tmp_path / 'm', max_train_steps=4)
    (tmp_path / 'm').unlink()
    train(tmp_path / 'm', max_train_steps=4)
    assert torch.load(tmp_path / 'm', weights_only=True)['number_training_updates'] == 4


def test_a_continued_run_keeps_its_seed_and_learning_rate_and_says_so(train, tmp_path, warnings):
    train(tmp_path / 'whole', max_train_steps=4, seed=3)
    train(tmp_path / 'm', max_train_steps=2, seed=3)
    assert not any('begin anew' in text for text in warnings)
    train(tmp_path / 'm', max_train_steps=4, seed=4, learningrate=0.5)
    told = [text for text in warnings if 'begin anew' in text]
    assert len(told) == 2 and 'keeps --seed 3' in told[0] and 'keeps --learningrate 0.01' in told[1]
    states = [torch.load(tmp_path / name, weights_only=True)['model'] for name in ('whole', 'm')]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=0, atol=1e-7)
    assert json.loads((tmp_path / 'm.opt').read_text())['learningrate'] == 0.01
