"""Files that a command cannot read or write are told before it begins; numbers are printed whatever happens."""

import json
import os

import pytest
from helpers.runs import SAMPLE, train
from parlai.scripts import eval_model, self_chat
from parlai.scripts.build_candidates import BuildCandidates
from parlai.scripts.build_dict import BuildDict
from parlai.scripts.convert_data_to_parlai_format import ConvertDataToParlaiFormat
from parlai.scripts.eval_model import EvalModel
from parlai.scripts.interactive import Interactive
from parlai.scripts.multiprocessing_eval import MultiProcessEval
from parlai.scripts.self_chat import SelfChat
from parlai.scripts.train_model import TrainModel

from spt_parlai.errors import UsageError

REPEAT = {'model': 'repeat_label', 'task': SAMPLE, 'datatype': 'valid', 'num_examples': 2}
TASK = {'task': SAMPLE}
TRAIN = {'model': 'spt_parlai.agents:SptAgent', 'task': SAMPLE}


@pytest.fixture
def nothing_begins(monkeypatch):
    for module, name in ((eval_model, 'create_agent'), (self_chat, 'create_agent')):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail('builds the agent'))
    monkeypatch.setattr('parlai.core.worlds.create_task_world', lambda *_, **__: pytest.fail('reads the task'))


def refused(script, **options):
    with pytest.raises(UsageError) as error:
        script.main(**options)
    assert '\n' not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    'script, options, name',
    [
        (EvalModel, REPEAT, 'world_logs'),
        (EvalModel, REPEAT, 'report_filename'),
        (EvalModel, {**REPEAT, 'task': f'{SAMPLE},integration_tests'}, 'world_logs'),
        (EvalModel, {**REPEAT, 'tensorboard_log': True}, 'tensorboard_logdir'),
        (MultiProcessEval, REPEAT, 'report_filename'),
        (TrainModel, TRAIN, 'world_logs'),
        (TrainModel, {**TRAIN, 'tensorboard_log': True}, 'tensorboard_logdir'),
        (Interactive, {'model': 'repeat_query'}, 'outfile'),
        (SelfChat, {'model': 'repeat_query'}, 'outfile'),
        (ConvertDataToParlaiFormat, TASK, 'outfile'),
        (BuildCandidates, TASK, 'outfile'),
        (BuildDict, TASK, 'dict_file'),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, '__name__', None),
)
def test_a_file_that_cannot_be_written(tmp_path, nothing_begins, script, options, name):
    (tmp_path / 'file').write_text('')
    told = refused(script, **options, **{name: str(tmp_path / 'file' / 'out')})
    assert told.startswith(f'--{name.replace("_", "-")} {tmp_path}/file/out: ')
    assert f'{tmp_path}/file is a file, so nothing can be written below it' in told


@pytest.mark.parametrize('name, as_path', [('world_logs', 'log.jsonl'), ('report_filename', 'log')])
def test_a_folder_in_the_place_of_a_file(tmp_path, nothing_begins, name, as_path):
    (tmp_path / as_path).mkdir()
    told = refused(EvalModel, **REPEAT, **{name: str(tmp_path / 'log')})
    assert told.endswith('it is a folder; give the path of a file.')


def test_a_file_without_permission(tmp_path, nothing_begins, monkeypatch):
    (tmp_path / 'report').touch()
    monkeypatch.setattr(os, 'access', lambda *_: False)  # root may write everywhere
    assert 'Permission denied' in refused(EvalModel, **REPEAT, report_filename=str(tmp_path / 'report'))


@pytest.mark.parametrize('save_format', ['conversations', 'parlai'])
def test_folders_of_new_files_are_made(tmp_path, save_format):
    out = tmp_path / 'new' / 'folder'
    EvalModel.main(
        **REPEAT, report_filename=str(out / 'report.json'), world_logs=str(out / 'log.jsonl'), save_format=save_format
    )
    assert json.loads((out / 'report.json').read_text())['report']['exs'] == 2 and (out / 'log.jsonl').read_text()


def test_a_report_beside_the_model_file(tmp_path, monkeypatch, nothing_begins):
    told = refused(EvalModel, **REPEAT, report_filename='.json')
    assert told.startswith('--report-filename .json: ') and '--model-file' in told and told.endswith('.')


def test_a_relative_path_is_no_extension(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    EvalModel.main(**REPEAT, report_filename='./report.json')
    assert (tmp_path / 'report.json').exists()


@pytest.mark.parametrize(
    'name, missing',
    [
        ('seed_messages_from_file', 'no'),
        ('partner_opt_file', 'no'),
        ('partner_model_file', 'no.opt'),
    ],
)
def test_a_missing_file(tmp_path, nothing_begins, name, missing):
    told = refused(SelfChat, model='repeat_query', **{name: str(tmp_path / 'no')})
    assert told.startswith(f'--{name.replace("_", "-")} {tmp_path}/no: there is no file {tmp_path}/{missing}')


def test_options_of_a_partner_that_cannot_be_read(tmp_path, nothing_begins):
    (tmp_path / 'partner').write_text('{')
    told = refused(SelfChat, model='repeat_query', partner_opt_file=str(tmp_path / 'partner'))
    assert 'no JSON object' in told


# ---- a full disk ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs a device that is always full')
@pytest.mark.parametrize('name, link', [('report_filename', 'out'), ('world_logs', 'out.jsonl')])
def test_a_report_that_cannot_be_saved_is_printed(tmp_path, name, link, capsys):
    (tmp_path / link).symlink_to('/dev/full')
    told = refused(EvalModel, **REPEAT, **{name: str(tmp_path / 'out')})
    assert 'could not be saved (No space left on device)' in told
    assert 'unigram_f1' in capsys.readouterr().out


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs a device that is always full')
def test_a_training_whose_reports_cannot_be_saved_evaluates_both_folds(tiny_llms, tmp_path):
    for fold in ('valid', 'test'):
        (tmp_path / f'm.{fold}').symlink_to('/dev/full')
    with pytest.raises(UsageError) as error:
        train(tmp_path / 'm', tiny_llms.opt, max_train_steps=1)
    assert str(error.value).count('No space left on device') == 2
    stats = json.loads((tmp_path / 'm.trainstats').read_text())
    assert stats['final_test_report']['exs'] == 8
