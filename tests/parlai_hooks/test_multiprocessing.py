"""Two worker processes on a CPU: training, its validation against a single process, and resuming."""

import json
import subprocess
import sys

import pytest
from helpers.runs import SMALL, evaluate, logged


def run(command, **options):
    """A `parlai` command in a process of its own, for spawned workers need one."""
    arguments = [word for key, value in options.items() for word in (f'--{key.replace("_", "-")}', str(value))]
    done = subprocess.run(
        [sys.executable, '-m', 'parlai', command, '--distributed-world-size', '2', *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def train(model_file, llm, steps):
    run(
        'multiprocessing_train',
        **{
            **SMALL,
            'llm': llm,
            'model_file': model_file,
            'max_train_steps': steps,
            'log_every_n_steps': 1,
            'validation_every_n_steps': 3,
            'validation_max_exs': -1,
        },
    )


@pytest.fixture(scope='module')
def trained(tiny_llms, tmp_path_factory):
    model_file = tmp_path_factory.mktemp('two') / 'model'
    train(model_file, tiny_llms.opt, 6)
    return model_file


def test_validation_equals_a_single_process(trained):
    two = json.loads(trained.with_name('model.trainstats').read_text())['final_valid_report']
    one = evaluate(trained, skip_generation=True, batchsize=4)
    assert two['exs'] == one['exs'] == 108
    for name in (
        'ppl',
        'loss',
        'nll',
        'selection',
        'fusion',
        'token_acc',
        'prompt_usage_0',
        'prompt_usage_entropy',
        'selected_gain',
        'best_gain',
    ):
        assert two[name] == pytest.approx(one[name], rel=1e-5), name


def test_a_stopped_run_of_two_continues_exactly(trained, tiny_llms, tmp_path):
    train(tmp_path / 'model', tiny_llms.opt, 3)
    train(tmp_path / 'model', tiny_llms.opt, 6)
    whole, continued = logged(trained), logged(tmp_path / 'model')
    assert continued[5] == pytest.approx(whole[5], rel=1e-5)
