"""Every learning-rate schedule of ParlAI, with and without warm-up, uninterrupted and after a stop."""

import math

import pytest
from helpers.runs import training_opt
from parlai.scripts import train_model

from spt_parlai.agents import SptAgent

STEPS = 10
SCHEDULES = {
    'reduceonplateau': {'lr_scheduler_patience': 0, 'validation_every_n_steps': 2},
    'fixed': {'lr_scheduler_patience': 1, 'validation_every_n_steps': 2},
    'invsqrt': {'invsqrt_lr_decay_gamma': 3},
    'cosine': {},
    'linear': {},
    'none': {},
}


@pytest.fixture
def rates(monkeypatch):
    """The learning rates of each update: of the prompts, and a tenth of it of the retriever."""
    seen = []
    update = SptAgent.update_params

    def update_params(self):
        prompts, retriever = (group['lr'] for group in self.optimizer.param_groups)
        assert retriever == pytest.approx(prompts / 10)
        seen.append(prompts)
        return update(self)

    monkeypatch.setattr(SptAgent, 'update_params', update_params)
    return seen


def run(llm, model_file, steps, **options):
    """Make `steps` updates of a run with `--max-train-steps STEPS`."""
    # the rates need no large batches
    small = {'batchsize': 1, 'dialogue_packing': False, 'validation_max_exs': 2, 'text_truncate': 48}
    small['retriever_learningrate'] = options['learningrate'] / 10
    loop = train_model.TrainLoop(
        training_opt(llm, model_file=model_file, max_train_steps=STEPS, log_every_n_steps=1, **{**small, **options})
    )
    if steps == STEPS:
        return loop.train()
    for _ in loop.train_steps():
        if loop._train_steps == steps:
            loop.save_model('.checkpoint')
            return None


@pytest.mark.parametrize('warmup', [0, 4])
@pytest.mark.parametrize('schedule', SCHEDULES)
def test_a_stop_does_not_change_the_learning_rates(tiny_llms, tmp_path, rates, schedule, warmup):
    if schedule == 'none' and warmup:
        pytest.skip('refused: test_parlai_options.py')
    options = {**SCHEDULES[schedule], 'lr_scheduler': schedule, 'learningrate': 0.5, 'optimizer': 'sgd'}
    if warmup:
        options |= {'warmup_updates': warmup, 'warmup_rate': 0.1}
    run(tiny_llms.opt, tmp_path / 'whole', STEPS, **options)
    whole = rates[:]
    for stop in (2, 7):
        rates.clear()
        run(tiny_llms.opt, tmp_path / f'stopped{stop}', stop, **options)
        assert len(rates) == stop
        run(tiny_llms.opt, tmp_path / f'stopped{stop}', STEPS, **options)
        assert rates == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize(
    'schedule, shape',
    [
        ('cosine', lambda p: 0.5 * math.cos(0.5 * math.pi * p)),
        ('linear', lambda p: 0.5 * (1 - p)),
    ],
)
def test_a_schedule_has_its_shape(tiny_llms, tmp_path, rates, schedule, shape):
    run(tiny_llms.opt, tmp_path / 'm', STEPS, lr_scheduler=schedule, learningrate=0.5, optimizer='sgd')
    assert rates == pytest.approx([shape(step / STEPS) for step in range(STEPS)])


def test_another_schedule_starts_anew(tiny_llms, tmp_path, rates):
    run(tiny_llms.opt, tmp_path / 'm', 3, lr_scheduler='linear', learningrate=0.5, optimizer='sgd')
    run(tiny_llms.opt, tmp_path / 'm', STEPS, lr_scheduler='cosine', learningrate=0.5, optimizer='sgd')
    assert rates[3] == pytest.approx(0.5)
