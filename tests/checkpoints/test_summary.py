"""A checkpoint's summary, read without torch, says what the checkpoint holds."""

from datetime import date
from pathlib import Path

import pytest
import torch
from helpers.runs import SAMPLE, train

from spt_parlai.checkpoints import files
from spt_parlai.checkpoints.summary import PROGRESS, facts, read_summary
from spt_parlai.errors import UsageError

GOLDEN = Path(__file__).parents[1] / 'golden' / 'v0_1_0'
DESCRIPTION = {'format': 1, 'llm': 'a/b', 'fingerprint': {'hidden_size': 16}, 'num_prompts': 2, 'prompt_length': 3}
DTYPES = ('float64', 'float32', 'float16', 'bfloat16', 'int64', 'int32', 'int16', 'int8', 'uint8', 'bool')


@pytest.mark.parametrize('name', ['whole/model', 'stopped/model', 'stopped/model.checkpoint'])
def test_it_is_what_the_checkpoint_holds(name):
    description, tensors, progress = read_summary(GOLDEN / name)
    states = files.load_states(GOLDEN / name)
    assert description == states['spt']
    assert list(tensors) == list(states['model'])
    for tensor, whole in zip(tensors.values(), states['model'].values(), strict=True):
        assert (tensor.shape, f'torch.{tensor.dtype}') == (tuple(whole.shape), str(whole.dtype))
    stats = states['progress']['train_stats']
    assert progress == {name: stats[name] for name in PROGRESS if stats[name] is not None}
    assert 'train_steps' in progress


def test_every_kind_of_tensor_has_its_shape_and_dtype(tmp_path):
    tensors = {dtype: torch.zeros(2, i, dtype=getattr(torch, dtype)) for i, dtype in enumerate(DTYPES)}
    tensors['view'] = torch.zeros(4, 6)[1:3, ::2]
    files.save_states({'model': tensors, 'spt': DESCRIPTION}, tmp_path / 'model')
    description, found, progress = read_summary(tmp_path / 'model')
    assert (description, progress) == (DESCRIPTION, {})
    assert found == {**{dtype: ((2, i), dtype) for i, dtype in enumerate(DTYPES)}, 'view': ((2, 3), 'float32')}


@pytest.mark.parametrize(
    'states, named',
    [
        ({'model': {'w': 1}}, 'model'),
        ({'model': {1: torch.zeros(1)}}, 'model'),
        ({'model': {'w': torch.zeros(1)}, 'progress': []}, 'progress'),
        ({'model': {}, 'progress': {'train_stats': None}}, 'train_stats'),
        ({'model': {}, 'progress': {'train_stats': {'train_steps': 'x'}}}, 'train_steps'),
        ({'model': {}, 'progress': {'train_stats': {'best_valid': torch.zeros(1)}}}, 'best_valid'),
    ],
)
def test_what_cannot_be_shown_is_damage(tmp_path, states, named):
    files.save_states({'spt': DESCRIPTION, **states}, tmp_path / 'model')
    with pytest.raises(UsageError, match=f'model is damaged .* no proper {named!r}'):
        read_summary(tmp_path / 'model')


def test_facts_of_a_trained_model(tiny_llms, tmp_path):
    valid, _ = train(tmp_path / 'm', tiny_llms.opt, max_train_steps=1)
    (tmp_path / 'README.md').write_text('a card')
    found = facts(tmp_path / 'm')
    assert found['task'] == SAMPLE and found['card'] == str(tmp_path / 'README.md')
    assert found['size'] == f'{(tmp_path / "m").stat().st_size / 1e6:,.2f} MB'
    assert f'ppl {float(valid["ppl"]):.4g}, ' in found['results'] and found['results'].endswith('exs 8')
    assert found['date'].startswith(str(date.fromtimestamp((tmp_path / 'm').stat().st_mtime)))


@pytest.mark.parametrize('beside', [None, '[]', '{'])
def test_facts_of_a_model_file_alone(tmp_path, beside):
    (tmp_path / 'm').write_bytes(b'1')
    if beside is not None:
        (tmp_path / 'm.opt').write_text(beside)
        (tmp_path / 'm.trainstats').write_text(beside)
    assert set(facts(tmp_path / 'm')) == {'file', 'size', 'date'}
