"""What the dashboard reads of a run."""

import json

import pytest
from helpers.recorded_run import record, report

from spt_parlai.dashboard.runs import find_runs, named, read_replies, read_run
from spt_parlai.errors import UsageError


def test_a_run_that_trains(tmp_path):
    run = read_run(record(tmp_path / 'm', seed=3))
    assert [r['train_steps'] for r in run['train']] == [5, 10, 15, 20, 25, 30]
    assert [r['ppl'] for r in run['valid']] == [50, 30, 40]
    assert run['best'] == {'metric': 'ppl', 'value': 30, 'train_steps': 20}
    assert run['options']['seed'] == 3 and not run['finished'] and run['time_left'] == pytest.approx(119.6)
    assert [entry['train_steps'] for entry in run['replies']] == [10, 20, 30] and run['updated'] > 0


def test_the_best_of_a_metric_that_grows(tmp_path):
    run = read_run(record(tmp_path / 'm', validation_metric_mode='max'))
    assert run['best'] == {'metric': 'ppl', 'value': 50, 'train_steps': 10}


def test_a_finished_run(tmp_path):
    model_file = record(tmp_path / 'm')
    stats = {'parleys': 30, 'final_valid_report': {'ppl': 29.0, 'text': 'x'}, 'final_test_report': {}}
    (tmp_path / 'm.trainstats').write_text(json.dumps(stats))
    run = read_run(model_file)
    assert run['finished'] and run['final'] == {'valid': {'ppl': 29.0}}
    (tmp_path / 'm.trainstats').write_text(json.dumps({**stats, 'parleys': 20}))  # the run was continued since
    assert not read_run(model_file)['finished']


def test_a_run_of_an_older_version_has_the_reports_of_parlai(tmp_path):
    (tmp_path / 'm.checkpoint.opt').write_text('{"seed": 4}')
    reports = {'train_reports': [report(5, ppl=float('nan'))], 'valid_reports': [report(5, ppl=8.0)]}
    (tmp_path / 'm.checkpoint.trainstats').write_text(json.dumps(reports))
    run = read_run(tmp_path / 'm')
    assert run['options'] == {'seed': 4} and run['best']['value'] == 8 and run['time_left'] is None
    assert 'ppl' not in run['train'][0]  # not a number


def test_replies_are_those_of_the_models_own_world_logs(tmp_path):
    model_file = record(tmp_path / 'm')
    other = tmp_path / 'other.jsonl'
    other.write_text((tmp_path / 'valid.jsonl').read_text())
    other.with_suffix('.metadata').write_text('{"opt": {"model_file": "elsewhere/other"}}')
    (tmp_path / 'notes.jsonl').write_text('{"this": "is no world log"}')
    first, second = read_replies(model_file)
    assert (first['log'], first['number'], first['said'], first['prompt']) == ('valid', 1, 'message 1', 1)
    assert first['persona'] == ('i like tea.',) and second['reply'] == 'reply 2: yes'  # as it was written


def test_runs_are_found_in_folders_and_named_by_what_differs(tmp_path):
    a, b = record(tmp_path / 'a' / 'model'), record(tmp_path / 'b' / 'model')
    assert find_runs([tmp_path]) == [a, b] == find_runs([a, b, a])
    assert named([a, b]) == ['a', 'b'] and named([a]) == ['a']
    c = record(tmp_path / 'b' / 'other')
    assert named([a, b, c]) == ['a/model', 'b/model', 'b/other']
    with pytest.raises(UsageError, match='elsewhere: no training run has left reports there'):
        find_runs([tmp_path / 'elsewhere'])


def test_an_agent_that_does_not_train_has_its_world_log_alone(tmp_path):
    record(tmp_path / 'm')
    (tmp_path / 'm.metrics.jsonl').unlink()
    (tmp_path / 'valid.metadata').write_text('{"opt": {"model_file": null}}')
    run = read_run(tmp_path / 'm')
    assert run['train'] == run['valid'] == [] and run['best'] is None and not run['finished']
    assert len(read_replies(tmp_path / 'm')) == 2
