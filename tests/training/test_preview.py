"""What a run evaluates at its end is looked at before its first step."""

import json
from pathlib import Path

import pytest
import torch
from helpers.runs import SAMPLE, train, training_opt
from parlai.core.metrics import AverageMetric
from parlai.core.teachers import FbDeprecatedDialogTeacher
from parlai.scripts.train_model import TrainLoop

from spt_parlai.agents import SptAgent
from spt_parlai.errors import UsageError
from spt_parlai.tasks import sample

VALID = Path(sample.__file__).with_name('valid.txt')
PAIR = f'{SAMPLE},integration_tests:nocandidate'


@pytest.fixture(autouse=True)
def no_step(monkeypatch):
    monkeypatch.setattr(SptAgent, 'train_step', lambda *_: pytest.fail('trains'))


def folds(folder, *names):
    """Options of a task that has these folds alone."""
    for name in names:
        (folder / f'chat_{name}.txt').write_text('text:hi\tlabels:hello\tepisode_done:True\n')
    path = {'fromfile_datapath': str(folder / 'chat'), 'fromfile_datatype_extension': True}
    return {'task': 'fromfile:parlaiformat', **path, 'datapath': str(folder)}


def refused(llm, folder, **options):
    with pytest.raises(UsageError) as error:
        train(folder / 'm', llm, max_train_steps=1, **options)
    assert '\n' not in str(error.value)
    return str(error.value)


# ---- folds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('datatype', ['train', 'train:stream'])
@pytest.mark.parametrize('missing, names', [('test', ('train', 'valid')), ('valid', ('train', 'test'))])
def test_a_missing_fold(tiny_llms, tmp_path, missing, names, datatype):
    told = refused(tiny_llms.opt, tmp_path, datatype=datatype, **folds(tmp_path, *names))
    assert told.startswith(f'-t fromfile:parlaiformat: {tmp_path}/chat_{missing}.txt: no such file')
    assert ('-dt test' in told) is (missing == 'test')


def test_a_missing_fold_of_the_task_that_evaluates(tiny_llms, tmp_path):
    """Also where it is one of two."""
    (tmp_path / 'chat_valid.txt').write_text('text:hi\tlabels:hello\tepisode_done:True\n')
    evaltask = f'{SAMPLE},fromfile:parlaiformat:fromfile_datapath={tmp_path}/chat:fromfile_datatype_extension=true'
    told = refused(tiny_llms.opt, tmp_path, evaltask=evaltask)
    assert f'{tmp_path}/chat_test.txt: no such file' in told and told.startswith('--evaltask fromfile')


@pytest.mark.parametrize(
    'content, reason',
    [
        (None, 'no such file or preset'),
        ('{', 'no JSON object'),
        ('1', 'no JSON object'),
        ('[]', 'names no "datatype"'),
        ('{"task": "x"}', 'names no "datatype"'),
    ],
)
def test_a_final_extra_evaluation_that_cannot_be_read(tiny_llms, tmp_path, content, reason):
    path = tmp_path / 'extra.opt'
    if content is not None:
        path.write_text(content)
    told = refused(tiny_llms.opt, tmp_path, final_extra_opt=path)
    assert told.startswith(f'--final-extra-opt {path}: ') and reason in told


def test_a_missing_fold_of_a_final_extra_evaluation(tiny_llms, tmp_path):
    (tmp_path / 'extra.opt').write_text(json.dumps({**folds(tmp_path, 'valid'), 'datatype': 'test'}))
    assert 'chat_test.txt: no such file' in refused(tiny_llms.opt, tmp_path, final_extra_opt=tmp_path / 'extra.opt')


# ---- the metric -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'metric, told',
    [
        ('token_ac', 'did you mean token_acc?'),
        ('pll', 'did you mean ppl?'),
        ('bleu-5', 'did you mean bleu-4?'),
        ('quite-another', 'choose from accuracy, '),
        (f'{SAMPLE}/ppl', 'did you mean ppl?'),  # of several tasks alone
    ],
)
def test_a_metric_that_validation_does_not_report(tiny_llms, tmp_path, metric, told):
    sentence = refused(tiny_llms.opt, tmp_path, validation_metric=metric)
    assert sentence.startswith(f'--validation-metric {metric}: validation reports no such metric; {told}')


def test_a_metric_of_a_task_that_is_not_evaluated(tiny_llms, tmp_path):
    told = refused(tiny_llms.opt, tmp_path, task=PAIR, validation_metric='spt_parlai.tasks.sampel/ppl')
    assert told.endswith(f'did you mean {SAMPLE}/ppl?')


class LateTeacher(FbDeprecatedDialogTeacher):
    """A task with a metric of its own, at the end of each dialogue."""

    def __init__(self, opt, shared=None):
        super().__init__({**opt, 'datafile': str(VALID)}, shared)
        self.id = 'late'

    def custom_evaluation(self, teacher_action, labels, model_response):
        if teacher_action['episode_done']:
            self.metrics.add('late_metric', AverageMetric(1))


def test_a_metric_of_the_tasks_own_that_comes_late(tiny_llms, tmp_path):
    """And what is looked at leaves no trace."""
    options = {'task': f'{__name__}:LateTeacher', 'skip_generation': True, 'model_file': tmp_path / 'm'}
    plain = TrainLoop(training_opt(tiny_llms.opt, **options))
    loop = TrainLoop(training_opt(tiny_llms.opt, **options, validation_metric='late_metric'))
    assert all(map(torch.equal, loop.agent.model.parameters(), plain.agent.model.parameters()))
    for each in (plain, loop):
        each._total_exs = each._total_epochs = 0
        each.opt['validation_metric'] = 'ppl'
        each.validate()
    assert loop.valid_reports[0]['exs'] == plain.valid_reports[0]['exs']
    assert loop.valid_reports[0]['ppl'] == plain.valid_reports[0]['ppl']
