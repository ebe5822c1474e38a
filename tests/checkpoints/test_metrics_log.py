"""MODEL.metrics.jsonl is exact after a run that was stopped at any moment."""

import json

import pytest
from helpers.recorded_run import report

from spt_parlai.checkpoints import metrics_log
from spt_parlai.errors import UsageError


def entries(model_file):
    return [(e['kind'], e['parleys']) for e in metrics_log.read(metrics_log.path_of(model_file)) if 'parleys' in e]


def test_a_continued_run_keeps_the_lines_up_to_its_checkpoint(tmp_path):
    model_file = tmp_path / 'm'
    metrics_log.begin(model_file, {'seed': 1}, 0, [])
    for step in (2, 4, 6):
        metrics_log.append(model_file, 'train', report(step))
        metrics_log.append(model_file, 'replies', {'parleys': step, 'contexts': []})
        metrics_log.append(model_file, 'valid', report(step))
    with open(metrics_log.path_of(model_file), 'a') as file:
        file.write('{"kind": "train", "parleys": 8, "los')  # killed while it wrote
    metrics_log.begin(model_file, {'seed': 2}, 4, [report(2), report(4)])
    kinds = ('train', 'replies', 'valid')
    assert entries(model_file) == [(kind, step) for step in (2, 4) for kind in kinds]
    assert metrics_log.read(metrics_log.path_of(model_file))[0] == {'kind': 'options', 'seed': 2}


def test_a_validation_that_only_the_checkpoint_has_is_added_and_one_that_it_lacks_is_dropped(tmp_path):
    model_file = tmp_path / 'm'
    metrics_log.begin(model_file, {}, 0, [])
    for step in (2, 4):
        metrics_log.append(model_file, 'train', report(step))
    metrics_log.append(model_file, 'replies', {'parleys': 4, 'contexts': []})  # Ctrl-C in the validation after it
    metrics_log.begin(model_file, {}, 4, [report(2, ppl=9.0)])
    assert entries(model_file) == [('train', 2), ('valid', 2), ('train', 4)]


def test_a_new_run_begins_a_new_file(tmp_path):
    model_file = tmp_path / 'm'
    metrics_log.begin(model_file, {}, 0, [])
    metrics_log.append(model_file, 'train', report(2))
    metrics_log.begin(model_file, {}, 0, [])
    assert entries(model_file) == []


def test_what_is_no_entry_is_left_out(tmp_path):
    path = tmp_path / 'm.metrics.jsonl'
    path.write_text('[]\nnull\n{"kind": "train"}\n' + json.dumps({'kind': 'train', 'parleys': 1}) + '\n\n')
    assert metrics_log.read(path) == [{'kind': 'train', 'parleys': 1}]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'm.metrics.jsonl').mkdir()
    with pytest.raises(UsageError, match=r'm\.metrics\.jsonl cannot be written'):
        metrics_log.begin(tmp_path / 'm', {}, 0, [])
