"""Checkpoints are written whole or not at all, and foreign files are recognised without running any of their code."""

import os
import pickle
import random

import numpy as np
import pytest
import torch

from spt_parlai.checkpoints import files
from spt_parlai.checkpoints.summary import read_summary
from spt_parlai.errors import UsageError

DESCRIPTION = {
    'format': 1,
    'llm': 'a/b',
    'llm_revision': None,
    'fingerprint': {'hidden_size': 16, 'shapes': 'x'},
    'num_prompts': 2,
    'prompt_length': 3,
    'seed': 1,
}


@pytest.fixture
def states():
    return {'model': {'w': torch.ones(2)}, 'spt': dict(DESCRIPTION), 'progress': {}}


@pytest.fixture
def path(states, tmp_path):
    files.save_states(states, tmp_path / 'model')
    return tmp_path / 'model'


def refusal(path):
    """What both readers say of a file. The reason in parentheses is each one's own."""
    said = []
    for read in (files.load_states, read_summary):
        with pytest.raises(UsageError) as error:
            read(path)
        said.append(str(error.value))
        assert str(path) in said[-1] and said[-1].endswith('.')
    assert said[0].partition(' (')[0] == said[1].partition(' (')[0]
    return said[0]


def test_comes_back(path, states):
    loaded = files.load_states(path)
    assert loaded['spt'] == states['spt'] and torch.equal(loaded['model']['w'], torch.ones(2))
    assert os.listdir(path.parent) == ['model']


def test_a_failed_write_leaves_the_old_file(path):
    before = path.read_bytes()
    with pytest.raises(Exception, match='pickle|local'):
        files.save_states({'model': lambda: None}, path)
    with pytest.raises(TypeError):
        files.save_json({'x': object()}, path)
    assert path.read_bytes() == before and os.listdir(path.parent) == ['model']


def test_whoever_reads_while_it_is_replaced_has_the_old_file(path, states):
    before = path.read_bytes()
    with open(path, 'rb') as reader:
        files.save_states({**states, 'progress': {'parleys': 7}}, path)
        assert reader.read() == before != path.read_bytes()


def test_every_truncation_is_noticed(path):
    whole = path.read_bytes()
    for length in [*range(0, 200, 9), *range(200, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert 'is damaged or no checkpoint' in refusal(path)


def test_any_bytes_are_refused(tmp_path):
    generator = random.Random(0)
    for number in range(300):
        file = tmp_path / f'random{number}'
        file.write_bytes(b'\x80\x02' * (number % 2) + generator.randbytes(generator.randrange(200)))
        refusal(file)


class Payload:
    """A pickle that makes a folder if it is read with code allowed."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    payload = Payload(tmp_path / 'ran')
    (tmp_path / 'plain').write_bytes(pickle.dumps(payload))
    torch.save({'model': payload, 'spt': DESCRIPTION}, tmp_path / 'zip')
    pickle.loads((tmp_path / 'plain').read_bytes())  # its code runs if that is allowed
    os.rmdir(tmp_path / 'ran')
    for name in ('plain', 'zip'):
        assert 'is damaged or no checkpoint' in refusal(tmp_path / name)
        assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    'content', [[1], {}, {'model': {}}, {'model': {}, 'optimizer': {}}, {'spt': DESCRIPTION}, {'spt': 3, 'model': {}}]
)
def test_another_agents_checkpoint_is_refused(tmp_path, content):
    torch.save(content, tmp_path / 'stock')
    assert 'was not written by spt_parlai; give the model file of an SptAgent' in refusal(tmp_path / 'stock')


def test_another_format_is_refused(tmp_path, states):
    states['spt']['format'] = 2
    files.save_states(states, tmp_path / 'newer')
    assert 'format 2, this version of spt_parlai reads 1; install the version' in refusal(tmp_path / 'newer')


@pytest.mark.parametrize('key', files.DESCRIPTION)
def test_a_description_with_a_hole_is_refused(tmp_path, states, key):
    del states['spt'][key]
    files.save_states(states, tmp_path / 'model')
    assert f'does not say its {key}' in refusal(tmp_path / 'model')


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert 'no such file; give' in refusal(tmp_path / 'nothing')
    refusal(tmp_path)


def test_says_how_another_llm_differs():
    here = {**DESCRIPTION, 'llm': 'c/d', 'fingerprint': {'hidden_size': 32, 'shapes': 'x'}}
    with pytest.raises(UsageError) as error:
        files.check_match('model', DESCRIPTION, here)
    for part in ('model was trained around --llm a/b', '--llm c/d', 'hidden_size 16 / 32', 'use --llm a/b'):
        assert part in str(error.value)
    assert 'shapes' not in str(error.value)


@pytest.mark.parametrize(
    'key, flag, value', [('num_prompts', '--num-prompts', 2), ('prompt_length', '--prompt-length', 3)]
)
def test_says_how_the_prompts_differ(key, flag, value):
    with pytest.raises(UsageError, match=f'model holds {flag} {value}, not 7: leave {flag} out or train anew'):
        files.check_match('model', DESCRIPTION, {**DESCRIPTION, key: 7})


def test_a_moved_llm_of_the_same_shape_is_accepted():
    files.check_match('model', DESCRIPTION, {**DESCRIPTION, 'llm': '/elsewhere', 'seed': 2})


def test_numbers_of_numpy_are_written_as_pythons(tmp_path, states):
    states['progress'] = {
        'lr': np.float64(0.1),
        'steps': [np.int64(3), (np.float32(0.5),)],
        'state': {np.int32(0): torch.ones(1)},
    }
    files.save_states(states, tmp_path / 'model')
    progress = files.load_states(tmp_path / 'model')['progress']
    assert {k: v for k, v in progress.items() if k != 'state'} == {'lr': 0.1, 'steps': [3, (0.5,)]} and list(
        progress['state']
    ) == [0]
    assert isinstance(states['progress']['lr'], np.float64)  # the saved dictionary itself is unchanged


@pytest.mark.parametrize('name', ['lr', 'initial_lr'])
def test_a_learning_rate_that_is_no_number_is_damage(tmp_path, states, name):
    states['optimizer'] = {'state': {}, 'param_groups': [{'lr': 0.1, 'params': [0], name: None}]}
    files.save_states(states, tmp_path / 'model')
    with pytest.raises(UsageError, match="damaged: its states has no proper 'optimizer'|no proper 'optimizer'"):
        files.load_states(tmp_path / 'model')


@pytest.mark.parametrize('value', [torch.zeros(3, 0), torch.zeros(2, 2), 'two\nlines', [1], 1.5])
def test_a_fingerprint_that_cannot_be_compared_is_damage(tmp_path, states, value):
    states['spt'] = {**states['spt'], 'fingerprint': {'hidden_size': value}}
    files.save_states(states, tmp_path / 'model')
    assert "no proper 'fingerprint'" in refusal(tmp_path / 'model')


def test_where_nothing_can_be_written(tmp_path, states):
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'file').touch()  # a folder that is not empty cannot be replaced
    with pytest.raises(UsageError, match='model cannot be written .* What was there is unchanged'):
        files.save_states(states, tmp_path / 'model')
    assert [p.name for p in tmp_path.iterdir()] == ['model']
    (tmp_path / 'file').touch()
    with pytest.raises(UsageError, match='cannot be written'):
        files.save_states(states, tmp_path / 'file' / 'model')


def test_what_a_killed_save_left_is_removed(tmp_path, states):
    (tmp_path / 'model.part123').touch()
    (tmp_path / 'model.files.part9').touch()  # of another file
    files.save_states(states, tmp_path / 'model')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['model', 'model.files.part9']


def test_checking_leaves_nothing_behind(tmp_path):
    (tmp_path / 'old').mkdir()
    for folder in ('new', 'old', 'old/new/newer'):
        files.check_writable(tmp_path / folder / 'model')
    assert [*tmp_path.iterdir()] == [tmp_path / 'old'] and not [*(tmp_path / 'old').iterdir()]
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match='file is a file, so nothing can be written below it'):
        files.check_writable(tmp_path / 'file' / 'model')
