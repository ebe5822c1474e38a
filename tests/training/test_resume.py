"""A training run that was stopped continues exactly: the same updates and the same losses."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers import warm
from helpers.runs import SMALL, evaluate, logged, train
from parlai.scripts import train_model
from parlai.utils import logging

from spt_parlai.checkpoints import metrics_log
from spt_parlai.errors import UsageError

RUN = {'max_train_steps': 30, 'log_every_n_steps': 1, 'validation_every_n_steps': 10, 'batchsize': 2}


@pytest.fixture(scope='module')
def uninterrupted(tiny_llms, tmp_path_factory):
    model_file = tmp_path_factory.mktemp('whole') / 'model'
    train(model_file, tiny_llms.opt, **RUN)
    return logged(model_file)


def wait_for(path, process, seconds=60):
    deadline = time.time() + seconds
    while not path.exists():
        assert time.time() < deadline and process.status is None, process.printed
        time.sleep(0.05)


@pytest.mark.parametrize('kill', [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_continues_to_the_same_losses(uninterrupted, tiny_llms, tmp_path, kill):
    model_file = tmp_path / 'model'
    output = tmp_path / 'output'
    process = warm.Process(output, train, str(model_file), tiny_llms.opt, **RUN, save_every_n_secs=0.2)
    wait_for(tmp_path / 'model.checkpoint.trainstats', process)
    os.kill(process.pid, kill)
    assert process.wait(60) in (-kill, 128 + kill), process.printed[-2000:]
    assert max(logged(tmp_path / 'model.checkpoint'), default=0) < 30  # it was stopped in the middle
    train(model_file, tiny_llms.opt, **RUN)
    curve = logged(model_file)
    assert max(curve) == max(uninterrupted)
    assert {step: pytest.approx(loss, rel=1e-6) for step, loss in curve.items()} == {s: uninterrupted[s] for s in curve}
    steps = [(e['kind'], e['train_steps']) for e in metrics_log.read(metrics_log.path_of(model_file)) if 'parleys' in e]
    assert [step for kind, step in steps if kind == 'train'] == sorted(curve)  # none is there twice
    assert [step for kind, step in steps if kind == 'valid'] == [10, 20]


def test_ctrl_c_while_a_report_is_logged(tiny_llms, tmp_path, monkeypatch):
    append = metrics_log.append

    def interrupted(path, kind, entry):
        if kind == 'train' and entry['train_steps'] == 2:
            os.kill(os.getpid(), signal.SIGINT)
        append(path, kind, entry)

    run = {**RUN, 'max_train_steps': 3}
    with monkeypatch.context() as patch:
        patch.setattr(metrics_log, 'append', interrupted)
        with pytest.raises(SystemExit):
            train(tmp_path / 'model', tiny_llms.opt, **run)
    train(tmp_path / 'model', tiny_llms.opt, **run)
    entries = metrics_log.read(metrics_log.path_of(tmp_path / 'model'))
    assert [e['train_steps'] for e in entries if e['kind'] == 'train' and 'parleys' in e] == [1, 2]


@pytest.fixture
def interrupt(monkeypatch):
    """interrupt(n, run): Ctrl-C in the middle of the n-th batch of a training run."""
    from spt_parlai.agents import SptAgent

    train_step = SptAgent.train_step
    assert threading.current_thread() is threading.main_thread()

    def stop(batch_number, run):
        steps = []

        def interrupted(self, batch):
            if not self._replaying:
                steps.append(1)
                if len(steps) == batch_number:
                    os.kill(os.getpid(), signal.SIGINT)
            return train_step(self, batch)

        monkeypatch.setattr(SptAgent, 'train_step', interrupted)
        with pytest.raises(SystemExit) as stopped:
            run()
        assert stopped.value.code == 128 + signal.SIGINT
        monkeypatch.setattr(SptAgent, 'train_step', train_step)

    return stop


def test_interrupt_waits_for_the_batch_and_saves(uninterrupted, tiny_llms, tmp_path, interrupt):
    def run():
        train(tmp_path / 'm', tiny_llms.opt, **RUN)

    interrupt(5, run)
    run()
    curve = logged(tmp_path / 'm')
    assert curve[max(curve)] == pytest.approx(uninterrupted[max(curve)], rel=1e-6)


def test_interrupt_between_two_updates_keeps_what_was_accumulated(tiny_llms, tmp_path, interrupt):
    def run(name):
        train(tmp_path / name, tiny_llms.opt, max_train_steps=6, update_freq=3, log_every_n_steps=1, batchsize=2)

    run('whole')
    interrupt(8, lambda: run('stopped'))  # two batches into the third update
    run('stopped')
    whole, stopped = (torch.load(tmp_path / name, weights_only=True)['model'] for name in ('whole', 'stopped'))
    for name in whole:
        torch.testing.assert_close(stopped[name], whole[name], rtol=1e-6, atol=1e-7)


def test_counters_lost_or_cut_off_are_taken_from_the_checkpoint(uninterrupted, tiny_llms, tmp_path):
    """A kill between the checkpoint and ParlAI's own counter file leaves the latter old, cut off or missing."""
    train(tmp_path / 'm', tiny_llms.opt, max_train_steps=10, log_every_n_steps=1, validation_every_n_steps=10)
    for content in ('{"parleys": 3', None):
        for name in ('m.trainstats', 'm.checkpoint.trainstats'):
            (tmp_path / name).unlink(missing_ok=True)
            if content is not None:
                (tmp_path / name).write_text(content)
        loop = train_model.TrainLoop
        opt = train_model.TrainModel.setup_args().parse_kwargs(
            **{**SMALL, 'llm': tiny_llms.opt, 'model_file': str(tmp_path / 'm')}
        )
        assert loop(opt).parleys == 10


def test_a_run_without_seed_continues_with_the_seed_it_chose(tiny_llms, tmp_path):
    train(
        tmp_path / 'm', tiny_llms.opt, max_train_steps=2, seed=None, save_after_valid=True, validation_every_n_steps=1
    )
    first = torch.load(tmp_path / 'm', weights_only=True)['spt']['seed']
    assert isinstance(first, int)
    train(tmp_path / 'm', tiny_llms.opt, max_train_steps=4, seed=None, validation_every_n_steps=1)
    assert torch.load(tmp_path / 'm.checkpoint', weights_only=True)['spt']['seed'] == first


def test_the_model_file_alone_is_enough_to_continue(uninterrupted, tiny_llms, tmp_path):
    options = {'log_every_n_steps': 1, 'validation_every_n_steps': 10, 'batchsize': 2}
    train(tmp_path / 'm', tiny_llms.opt, max_train_steps=10, **options)
    train_model.TrainModel.main(model_file=str(tmp_path / 'm'), task=SMALL['task'], max_train_steps=30, **options)
    curve = logged(tmp_path / 'm')
    assert curve[max(curve)] == pytest.approx(uninterrupted[max(uninterrupted)], rel=1e-6)


@pytest.mark.parametrize(
    'schedule',
    [
        {'lr_scheduler': name, 'warmup_updates': warmup, **({'invsqrt_lr_decay_gamma': 3} if name == 'invsqrt' else {})}
        for name in ('reduceonplateau', 'fixed', 'invsqrt', 'cosine', 'linear', 'none')
        for warmup in (-1, 6)
        if (name, warmup) not in {('none', 6), ('reduceonplateau', -1)}
    ],
    ids=lambda schedule: f'{schedule["lr_scheduler"]}-{schedule["warmup_updates"]}',
)
def test_learning_rates_continue(tiny_llms, tmp_path, interrupt, schedule):
    """With every scheduler, in the middle of its warm-up or without one."""

    def run(name):
        train(tmp_path / name, tiny_llms.opt, max_train_steps=8, log_every_n_steps=1, batchsize=1, **schedule)
        return json.loads((tmp_path / f'{name}.trainstats').read_text())['train_reports']

    whole = {report['train_steps']: report for report in run('whole')}
    interrupt(4, lambda: run('stopped'))
    for report in run('stopped'):
        for name in ('lr', 'spt_loss'):
            assert report.get(name) == whole[report['train_steps']].get(name), (name, report['train_steps'])
    first, second = (torch.load(tmp_path / name, weights_only=True)['model'] for name in ('whole', 'stopped'))
    torch.testing.assert_close(second, first, rtol=0, atol=0)


def test_a_resumed_run_ends_with_the_report_of_its_best_model(uninterrupted, tiny_llms, tmp_path, interrupt):
    """ParlAI would evaluate the checkpoint that the run was resumed from; also where the run began from another one."""
    options = {'max_train_steps': 7, 'validation_every_n_steps': 4, 'learningrate': 0.5}

    def report(name):
        stats = json.loads((tmp_path / f'{name}.trainstats').read_text())
        return {fold: stats[f'final_{fold}_report']['spt_loss'] for fold in ('valid', 'test')}, stats[
            'final_valid_report'
        ]['total_train_updates']

    train(tmp_path / 'whole', tiny_llms.opt, **options)
    interrupt(6, lambda: train(tmp_path / 'stopped', tiny_llms.opt, **options))
    train(tmp_path / 'stopped', tiny_llms.opt, **options)
    assert report('stopped') == report('whole') and report('whole')[1] == 4
    evaluated = [
        evaluate(tmp_path / name, num_examples=8, skip_generation=True)['spt_loss'] for name in ('whole', 'stopped')
    ]
    assert evaluated[0] == evaluated[1] == pytest.approx(report('whole')[0]['valid'])
    train(tmp_path / 'began', tiny_llms.opt, **options, init_model=str(tmp_path / 'stopped.checkpoint'))
    best = json.loads((tmp_path / 'began.trainstats').read_text())
    assert best['final_valid_report']['spt_loss'] == best['valid_reports'][0]['spt_loss']


def test_a_run_goes_on_with_another_scheduler_or_optimizer(tiny_llms, tmp_path):
    train(tmp_path / 'm', tiny_llms.opt, max_train_steps=4, validation_every_n_steps=2)
    train(
        tmp_path / 'm',
        tiny_llms.opt,
        max_train_steps=6,
        validation_every_n_steps=2,
        lr_scheduler='linear',
        warmup_updates=2,
    )
    train(tmp_path / 'm', tiny_llms.opt, max_train_steps=8, validation_every_n_steps=2, optimizer='sgd')
    assert torch.load(tmp_path / 'm.checkpoint', weights_only=True)['optimizer_type'] == 'sgd'


# ---- the files that a run begins from, or will be kept in ---------------------------------------------------


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(logging, 'warning', lambda text: said.append(str(text)))
    return said


def test_without_a_model_file_the_run_is_kept_in_a_new_folder(tiny_llms, tmp_path, monkeypatch, warnings):
    monkeypatch.chdir(tmp_path)
    train_model.TrainModel.main(**SMALL, llm=tiny_llms.opt, max_train_steps=2)
    (kept,) = (tmp_path / 'runs').glob('*/model')
    assert torch.load(kept, weights_only=True)['number_training_updates'] == 2
    assert any(str(kept.relative_to(tmp_path)) in text and 'No --model-file' in text for text in warnings)


def test_a_damaged_best_model_is_told_before_training(tiny_llms, tmp_path):
    train(tmp_path / 'm', tiny_llms.opt, max_train_steps=2, validation_every_n_steps=1, save_every_n_secs=0.001)
    whole = (tmp_path / 'm').read_bytes()
    (tmp_path / 'm.checkpoint').write_bytes(whole)
    (tmp_path / 'm').write_bytes(whole[:500])
    with pytest.raises(UsageError, match='m is damaged.*m.checkpoint is whole: delete .*m to continue'):
        train(tmp_path / 'm', tiny_llms.opt, max_train_steps=4)
    (tmp_path / 'm').unlink()
    train(tmp_path / 'm', tiny_llms.opt, max_train_steps=4)
    assert torch.load(tmp_path / 'm', weights_only=True)['number_training_updates'] == 4


def test_a_continued_run_keeps_its_seed_and_learning_rate_and_says_so(tiny_llms, tmp_path, warnings):
    train(tmp_path / 'whole', tiny_llms.opt, max_train_steps=4, seed=3)
    train(tmp_path / 'm', tiny_llms.opt, max_train_steps=2, seed=3)
    assert not any('begin anew' in text for text in warnings)
    train(tmp_path / 'm', tiny_llms.opt, max_train_steps=4, seed=4, learningrate=0.5)
    told = [text for text in warnings if 'begin anew' in text]
    assert len(told) == 2 and 'keeps --seed 3' in told[0] and 'keeps --learningrate 0.01' in told[1]
    states = [torch.load(tmp_path / name, weights_only=True)['model'] for name in ('whole', 'm')]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=0, atol=1e-7)
    assert json.loads((tmp_path / 'm.opt').read_text())['learningrate'] == 0.01


# ---- killed at any moment ------------------------------------------------------------------------------------

KILLS = int(os.environ.get('SPT_KILLS', '2'))  # 20: 20 random kills and every deliberate one


def test_killed_runs_end_as_one_left_alone(tiny_llms, tmp_path):
    """A SIGKILL at any moment leaves a state from which the same command goes on to the same numbers."""
    script = Path(__file__).with_name('stopped_runs.py')
    deliberate = 'all' if KILLS >= 20 else str(KILLS)
    options = ['--llm', tiny_llms.opt, '--work', tmp_path, '--random', KILLS, '--deliberate', deliberate]
    process = warm.Process(tmp_path / 'printed', warm.script, script, *options)
    status = process.wait(3600)
    print(process.printed)  # with the seed of what was drawn
    assert status == 0
    assert f'{KILLS} random and ' in process.printed
