"""What ParlAI's training loop offers: when it validates, stops and saves, where it begins, what it logs."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from helpers.runs import AGENT, SAMPLE, agent_of, logged, states, train, training_opt
from parlai.core.agents import create_agent
from parlai.core.teachers import create_task_agent_from_taskname
from parlai.scripts import train_model
from parlai.scripts.display_data import DisplayData
from parlai.scripts.eval_model import EvalModel
from tensorboardX.proto.event_pb2 import Event

from spt_parlai.agents import SptAgent
from spt_parlai.checkpoints import metrics_log
from spt_parlai.dialogue.mutator import FIELD
from spt_parlai.errors import UsageError
from spt_parlai.training.validation_contexts import read_contexts

PAIR = f'{SAMPLE},integration_tests:nocandidate'


def stats(model_file):
    return json.loads(Path(f'{model_file}.trainstats').read_text())


def validated_at(model_file):
    return [r['train_steps'] for r in stats(model_file)['valid_reports']]


@pytest.fixture(scope='module')
def trained(tiny_llms, tmp_path_factory):
    path = tmp_path_factory.mktemp('trained') / 'm'
    train(path, tiny_llms.opt, max_train_steps=4, validation_every_n_steps=2, learningrate=0.1)
    return path


# ---- validation and the end -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    'options, steps',
    [
        ({'validation_every_n_steps': 2, 'max_train_steps': 7}, [2, 4, 6]),
        (
            {'validation_every_n_epochs': 0.2, 'max_train_steps': 13},
            [4, 8, 12],
        ),  # 18.5 batches of four dialogues in an epoch
        ({'validation_every_n_secs': 1e-6, 'max_train_steps': 4}, [1, 2, 3]),
        ({'validation_every_n_steps': 1, 'max_train_time': 1e-6, 'max_train_steps': 4}, []),
    ],
    ids=str,
)
def test_validates_when_asked_to(tiny_llms, tmp_path, options, steps):
    train(tmp_path / 'm', tiny_llms.opt, **{'validation_max_exs': 4, **options})
    assert validated_at(tmp_path / 'm') == steps


def test_stops_when_validation_no_longer_improves(tiny_llms, tmp_path):
    train(
        tmp_path / 'm',
        tiny_llms.opt,
        learningrate=0.0,
        validation_every_n_steps=1,
        validation_patience=3,
        max_train_steps=20,
    )
    assert validated_at(tmp_path / 'm') == [1, 2, 3, 4]


def test_patience_counts_on_after_a_stop(tiny_llms, tmp_path):
    options = {'learningrate': 0.0, 'validation_every_n_steps': 1, 'validation_patience': 4}
    train(tmp_path / 'm', tiny_llms.opt, max_train_steps=3, **options)
    train(tmp_path / 'm', tiny_llms.opt, max_train_steps=20, **options)
    assert validated_at(tmp_path / 'm') == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    'options, steps',
    [
        ({'validation_cutoff': 1e9}, [1]),
        ({'validation_metric': 'loss', 'validation_cutoff': 100}, [1]),
        ({'validation_metric': 'selection'}, [1, 2]),
        ({'validation_metric': 'token_acc', 'validation_cutoff': 0.0}, [1]),
    ],
    ids=str,
)
def test_stops_at_the_cutoff(tiny_llms, tmp_path, options, steps):
    train(tmp_path / 'm', tiny_llms.opt, validation_every_n_steps=1, max_train_steps=3, **options)
    assert validated_at(tmp_path / 'm') == steps


@pytest.mark.parametrize('metric', ['spt_loss', 'ppl', 'token_acc', 'prompt_usage_entropy'])
def test_the_best_model_is_kept(tiny_llms, tmp_path, metric):
    train(
        tmp_path / 'm',
        tiny_llms.opt,
        validation_every_n_steps=1,
        max_train_steps=5,
        learningrate=0.5,
        validation_metric=metric,
        optimizer='sgd',
        gradient_clip=-1,
        lambda_selection=0,
    )
    reports = stats(tmp_path / 'm')['valid_reports']
    best = (max if metric in ('token_acc', 'prompt_usage_entropy') else min)(r[metric] for r in reports)
    kept = torch.load(tmp_path / 'm', weights_only=True)['progress']['train_stats']
    assert kept['best_valid'] == best == next(r[metric] for r in reports if r['train_steps'] == kept['train_steps'])


def test_a_short_final_evaluation(tiny_llms, tmp_path):
    valid, test = train(tmp_path / 'm', tiny_llms.opt, max_train_steps=1, validation_max_exs=12)
    assert (valid['exs'], test['exs']) == (12, 12)
    valid, test = train(tmp_path / 'n', tiny_llms.opt, max_train_steps=1, short_final_eval=False, skip_generation=True)
    assert (valid['exs'], test['exs']) == (108, 108)


def test_a_final_extra_evaluation(tiny_llms, tmp_path):
    (tmp_path / 'extra.opt').write_text(
        json.dumps(
            {
                'task': 'integration_tests:nocandidate',
                'datatype': 'valid',
                'validation_max_exs': 20,
                'short_final_eval': True,
            }
        )
    )
    train(tmp_path / 'm', tiny_llms.opt, max_train_steps=1, final_extra_opt=tmp_path / 'extra.opt')
    assert stats(tmp_path / 'm')['final_extra_valid_report']['exs'] == 20


@pytest.mark.parametrize('share', [True, False])
def test_validation_with_a_shared_agent_is_the_same(tiny_llms, tmp_path, share):
    train(
        tmp_path / 'm',
        tiny_llms.opt,
        max_train_steps=5,
        validation_every_n_steps=2,
        validation_share_agent=share,
        log_every_n_steps=1,
        skip_generation=False,
    )
    assert logged(tmp_path / 'm')[4] == pytest.approx(logged(tmp_path / 'm')[4])
    reports = stats(tmp_path / 'm')['valid_reports']
    assert [r['exs'] for r in reports] == [8, 8] and reports[1]['ppl'] != reports[0]['ppl']


@pytest.mark.parametrize('share', [True, False])
@pytest.mark.parametrize(
    'options, generates',
    [
        ({}, False),
        ({'skip_generation': False}, True),
        ({'validation_metric': 'f1'}, True),
    ],
    ids=str,
)
def test_validation_generates_only_where_it_must(tiny_llms, tmp_path, options, generates, share):
    """Also by the copies of the agent that validate, and not in a command that does not train."""
    opt = training_opt(tiny_llms.opt, model_file=tmp_path / 'm', validation_share_agent=share, **options)
    agent = create_agent(opt)
    assert agent.skip_generation is bool(options.get('skip_generation'))
    loop = train_model.TrainLoop(opt)
    (world,) = loop.valid_worlds
    assert world.get_model_agent().skip_generation is loop.agent.skip_generation is not generates
    loop._total_exs = loop._total_epochs = 0
    loop.validate()
    assert ('f1' in loop.valid_reports[0]) is generates


def first_message(opt):
    (teacher,) = create_task_agent_from_taskname({**opt, 'batchsize': 1})
    return teacher.act()


def test_only_training_reads_whole_dialogues(tiny_llms, tmp_path, trained):
    """The mutator is named by the training loop alone: neither a model file nor one of version 0.1.0, which stored its
    name, brings it into a command that shows or evaluates data."""
    stored = Path(f'{trained}.opt')
    options = json.loads(stored.read_text())
    assert 'mutators' not in options and 'training_loop' not in options and options['dialogue_packing'] is True
    for suffix in ('', '.opt', '.dict'):
        shutil.copy(f'{trained}{suffix}', tmp_path / f'm{suffix}')
    for mutators in (None, 'whole_dialogue'):
        (tmp_path / 'm.opt').write_text(json.dumps({**options, 'mutators': mutators}))
        shown = DisplayData.setup_args().parse_kwargs(
            task=SAMPLE, model_file=str(tmp_path / 'm'), datatype='train:ordered'
        )
        evaluated = EvalModel.setup_args().parse_kwargs(
            task=SAMPLE, model_file=str(tmp_path / 'm'), datatype='train:evalmode'
        )
        assert shown.get('mutators') is evaluated.get('mutators') is None
        for opt in (shown, evaluated):
            assert FIELD not in first_message(opt)
        resumed = train_model.TrainLoop(training_opt(tiny_llms.opt, model_file=tmp_path / 'm'))
        assert resumed.parleys and resumed.opt['mutators'] == 'whole_dialogue'
        assert FIELD in first_message(resumed.opt)
        assert all(FIELD not in first_message(world.opt) for world in resumed.valid_worlds)


@pytest.mark.parametrize('options', [{'dialogue_packing': False}, {'mutators': 'flatten'}], ids=str)
def test_training_reads_turns_where_it_is_told_to(tiny_llms, tmp_path, options):
    loop = train_model.TrainLoop(training_opt(tiny_llms.opt, model_file=tmp_path / 'm', **options))
    assert loop.opt['mutators'] == options.get('mutators') and FIELD not in first_message(loop.opt)


# ---- where it begins ------------------------------------------------------------------------------------


def tensors(path):
    return torch.load(path, weights_only=True)['model']


def begun(llm, **options):
    """What a run that starts with these options has before its first step."""
    agent = train_model.TrainLoop(training_opt(llm, **options)).agent
    return {name: tensor.clone() for name, tensor in agent.model.state_dict().items()}, agent


@pytest.mark.parametrize('suffix', ['', '.checkpoint'])
def test_a_new_run_starts_from_another_model(tiny_llms, tmp_path, trained, suffix):
    start = f'{trained}{suffix}'
    found, agent = begun(
        tiny_llms.opt, model_file=tmp_path / 'm', init_model=start, load_from_checkpoint=False, seed=99
    )
    for name, tensor in tensors(start).items():
        assert torch.equal(found[name], tensor)
    assert agent._number_training_updates == 0 and not agent.optimizer.state


def test_a_checkpoint_as_init_model_continues_its_optimizer(tiny_llms, tmp_path, trained):
    """ParlAI's rule: `-im FILE.checkpoint` with --load-from-checkpoint true (the default) is a run that continues."""
    _, agent = begun(tiny_llms.opt, model_file=tmp_path / 'm', init_model=f'{trained}.checkpoint')
    assert agent.optimizer.state and agent._number_training_updates == 2  # of its last validation


def test_load_from_checkpoint_chooses_the_newest_or_the_best(tiny_llms, trained):
    for newest, suffix in ((True, '.checkpoint'), (False, '')):
        found, _ = begun(tiny_llms.opt, model_file=trained, load_from_checkpoint=newest)
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors(f'{trained}{suffix}').items())


def test_no_checkpoint_where_none_is_wanted(tiny_llms, tmp_path):
    train(tmp_path / 'm', tiny_llms.opt, max_train_steps=3, validation_every_n_steps=1, save_after_valid=False)
    assert (tmp_path / 'm').exists() and not (tmp_path / 'm.checkpoint').exists()


def test_options_from_a_file(tiny_llms, tmp_path):
    (tmp_path / 'o.opt').write_text(
        json.dumps({'model': AGENT, 'num_prompts': 5, 'learningrate': 0.5, 'not_an_option': 1})
    )
    parser = train_model.TrainModel.setup_args()
    with pytest.raises(UsageError, match='not_an_option is no option of'):
        parser.parse_args(['-o', str(tmp_path / 'o.opt')])
    opt = train_model.TrainModel.setup_args().parse_args(
        ['-o', str(tmp_path / 'o.opt'), '--allow-missing-init-opts', 'true', '--learningrate', '0.25']
    )
    assert (opt['num_prompts'], opt['learningrate'], opt['override']['num_prompts']) == (5, 0.25, 5)


# ---- data -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('datatype', ['train', 'train:ordered', 'train:stream', 'train:ordered:stream'])
def test_every_way_to_read_the_training_fold(tiny_llms, tmp_path, datatype):
    train(tmp_path / 'm', tiny_llms.opt, datatype=datatype, max_train_steps=6, log_every_n_steps=1)
    assert len(logged(tmp_path / 'm')) == 5


def test_background_workers_train_on_the_same_data(tiny_llms, tmp_path):
    train(tmp_path / 'm', tiny_llms.opt, num_workers=2, max_train_steps=6, log_every_n_steps=2)
    assert set(logged(tmp_path / 'm')) == {2, 4} and max(logged(tmp_path / 'm', 'ppl').values()) < 1000
    train(tmp_path / 'm', tiny_llms.opt, num_workers=2, max_train_steps=8, log_every_n_steps=2)
    assert max(logged(tmp_path / 'm')) > 5


def test_several_tasks_by_weight(tiny_llms, tmp_path, monkeypatch):
    """Both tasks are trained on, a dialogue of one for four of the other, and validated each and together."""
    drawn = []
    train_step = SptAgent.train_step

    def record(self, batch):
        drawn.extend('persona' in text for text in batch.texts['context'])
        return train_step(self, batch)

    monkeypatch.setattr(SptAgent, 'train_step', record)
    valid, _ = train(
        tmp_path / 'm', tiny_llms.opt, task=PAIR, multitask_weights='1,4', max_train_steps=50, num_prompts=1
    )
    assert 0.5 < sum(drawn) / len(drawn) < 0.8  # a dialogue of eight turns for four of one turn: 0.67
    own = [float(valid[f'{task}/ppl']) for task in PAIR.split(',')]
    assert float(valid['ppl']) == pytest.approx(sum(own) / 2)
    assert valid['exs'] == 8


def test_validation_on_one_of_several_tasks(tiny_llms, tmp_path):
    train(
        tmp_path / 'm',
        tiny_llms.opt,
        task=PAIR,
        max_train_steps=3,
        validation_every_n_steps=1,
        validation_metric='integration_tests:nocandidate/ppl',
    )
    assert stats(tmp_path / 'm')['best_valid'] == min(
        r['integration_tests:nocandidate/ppl'] for r in stats(tmp_path / 'm')['valid_reports']
    )


def test_validation_on_another_task(tiny_llms, tmp_path):
    valid, _ = train(tmp_path / 'm', tiny_llms.opt, max_train_steps=1, evaltask='integration_tests:nocandidate')
    assert float(valid['llen']) < 12  # four digits and an end; a reply of the sample task has forty tokens


# ---- tensorboard ----------------------------------------------------------------------------------------


def scalars(folder):
    """{tag: {step: value}} of an event file: records of length, checksum, event and checksum."""
    found: dict[str, dict[int, float]] = {}
    for path in Path(folder).glob('events*'):
        data = path.read_bytes()
        while data:
            length = struct.unpack('<Q', data[:8])[0]
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


@pytest.mark.parametrize('logdir', [None, 'elsewhere'])
def test_tensorboard_has_losses_usage_and_learning_rate(tiny_llms, tmp_path, logdir):
    model_file = tmp_path / 'm'
    train(
        model_file,
        tiny_llms.opt,
        max_train_steps=6,
        log_every_n_steps=2,
        validation_every_n_steps=4,
        log_replies=1,
        tensorboard_log=True,
        tensorboard_logdir=logdir and tmp_path / logdir,
    )
    found = scalars(tmp_path / logdir if logdir else f'{model_file}.tensorboard')
    names = (
        'spt_loss',
        'nll',
        'selection',
        'contrastive',
        'fusion',
        'ppl',
        'lr',
        'prompt_usage_0',
        'prompt_usage_1',
        'prompt_usage_entropy',
    )
    for name in names:
        assert found[f'{name}/train'] == pytest.approx(logged(model_file, name))
        assert name == 'lr' or set(found[f'{name}/valid']) == {4}
    assert found['lr/train'][2] == pytest.approx(0.01)
    views = {'custom_scalars__config__', 'options/text_summary', 'replies/text_summary'}
    assert views | {'token_norms/prompt_2', 'scores/prompt_2'} <= set(found)
    (best,) = Path(tmp_path / logdir if logdir else f'{model_file}.tensorboard').glob('best/events*')
    assert {'_hparams_/session_start_info', 'best/ppl'} <= set(scalars(best.parent))


# ---- MODEL.metrics.jsonl --------------------------------------------------------------------------------


def entries(model_file, kind):
    return [entry for entry in metrics_log.read(metrics_log.path_of(model_file)) if entry['kind'] == kind]


LOGGED = {'max_train_steps': 5, 'validation_every_n_steps': 2, 'log_every_n_steps': 1, 'validation_max_exs': 4}


@pytest.fixture(scope='module')
def replying(tiny_llms, tmp_path_factory):
    """A run that logs sampled replies of all prompts."""
    path = tmp_path_factory.mktemp('replying') / 'm'
    train(path, tiny_llms.opt, **LOGGED, log_replies=3, inference='topk')
    return path


def test_every_report_is_appended_as_it_is(replying):
    train_reports = stats(replying)['train_reports']
    assert len(train_reports) == 4 and [e['time_left'] > 0 for e in entries(replying, 'train')] == [True] * 4
    assert [{**r, 'kind': 'train'} for r in train_reports] == [
        {name: value for name, value in e.items() if name != 'time_left'} for e in entries(replying, 'train')
    ]
    assert [{**r, 'kind': 'valid'} for r in stats(replying)['valid_reports']] == entries(replying, 'valid')
    (options,) = entries(replying, 'options')
    assert options['num_prompts'] == 3 and 'override' not in options and 'datapath' not in options


def test_every_prompt_replies_to_the_same_contexts_at_each_validation(replying):
    first, second = (entry['contexts'] for entry in entries(replying, 'replies'))
    assert [(c['persona'], c['dialogue'], c['label']) for c in first] == [
        (c['persona'], c['dialogue'], c['label']) for c in second
    ]
    assert [len(c['dialogue']) for c in first] == [1, 3, 5]
    for context in (*first, *second):
        assert len(context['replies']) == len(context['scores']) == 3
        assert context['selected'] == max(range(3), key=context['scores'].__getitem__)


def test_logged_replies_leave_the_run_as_it_is(tiny_llms, tmp_path, replying):
    train(tmp_path / 'm', tiny_llms.opt, **LOGGED, inference='topk')
    one, other = states(tmp_path / 'm.checkpoint'), states(f'{replying}.checkpoint')
    assert all(torch.equal(tensor, other['model'][name]) for name, tensor in one['model'].items())
    assert repr(one['progress']['random']) == repr(other['progress']['random'])
    ours, theirs = (stats(path)['valid_reports'] for path in (tmp_path / 'm', replying))
    timed = ('exps', 'ltps', 'ctps', 'tps', 'train_time')
    assert [{n: v for n, v in r.items() if n not in timed} for r in ours] == [
        {n: v for n, v in r.items() if n not in timed} for r in theirs
    ]


def test_logged_replies_are_those_of_the_forced_prompt(tiny_llms):
    opt = training_opt(tiny_llms.opt)
    agent = agent_of(tiny_llms.opt)
    contexts = read_contexts(opt, agent, 3)
    found = agent.replies_of_all_prompts([context.observation for context in contexts])
    agent.skip_generation = False
    for k in range(3):
        agent.bare_model.force_prompt = k
        acts = agent.batch_act([context.observation for context in contexts])
        assert [act['text'] for act in acts] == [replied['replies'][k] for replied in found]


def test_contexts_of_several_tasks_take_turns(tiny_llms):
    agent = agent_of(tiny_llms.opt)
    contexts = read_contexts({**agent.opt, 'task': PAIR}, agent, 4)
    assert [len(c.dialogue) for c in contexts] == [1, 1, 3, 1] and not contexts[1].persona  # one turn, no persona
