"""N processes train as one process with N times the batch, however they are started, stopped and continued."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import runs as helpers
from helpers import warm
from parlai.scripts.multiprocessing_train import MultiProcessTrain
from parlai.scripts.train_model import TrainModel
from parlai.utils.distributed import find_free_port
from transformers import AutoModelForCausalLM, AutoTokenizer

from spt_parlai.checkpoints.files import load_states
from spt_parlai.errors import UsageError

TESTS = Path(__file__).parents[1]
HERE = TESTS / 'helpers'
ORDERED = {
    **helpers.SMALL,
    'task': 'helpers.two_processes.teachers',
    'datatype': 'train:ordered',
    'log_every_n_steps': 1,
    'batchsize': 3,
    'validation_max_exs': -1,
    'skip_generation': True,
    'validation_every_n_epochs': -1,  # the model file is the last step's
}
WITHOUT_CONTRAST = {**ORDERED, 'lambda_contrastive': 0.0}
SGD = {
    **WITHOUT_CONTRAST,
    'optimizer': 'sgd',
    'learningrate': 1.0,
    'lambda_selection': 100.0,
    'gradient_clip': 1.0,
    'update_freq': 2,
    'max_train_steps': 5,
}
ADAM = {**WITHOUT_CONTRAST, 'optimizer': 'adam', 'learningrate': 0.01, 'max_train_steps': 8}
SELECTED = ('prompt_usage_0', 'prompt_usage_1', 'prompt_usage_2')
LOGGED = ('ppl', 'loss', 'nll', 'selection', 'fusion', 'token_acc', 'gnorm', *SELECTED)
CLOSE = {'rtol': 1e-5, 'atol': 1e-5}


class Run:
    """What training in `folder` left behind."""

    def __init__(self, folder):
        self.folder = folder
        self.states = load_states(folder / 'model')
        self.log = json.loads((folder / 'model.trainstats').read_text())

    def seen(self, fold):
        """{(example, how often it was seen before): its metrics}, all processes together."""
        found = {}
        for path in sorted(self.folder.glob('[0-9].jsonl')):
            for line in map(json.loads, path.read_text().splitlines()):
                if line.pop('fold') == fold:
                    number = line.pop('number')
                    found[number, sum(other == number for other, _ in found)] = line
        return found

    def gradients(self, rank):
        """What each update applied, on one process."""
        return [torch.load(path) for path in sorted(self.folder.glob(f'gradients_{rank}_*.pt'))]


def train(folder, processes, environment=(), **options):
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {'SEEN': str(folder), **dict(environment)}.items():
            patch.setenv(name, value)
        warm.patch_workers(patch)
        options['model_file'] = str(folder / 'model')
        options = {name: value for name, value in options.items() if value is not None}
        if processes == 1:
            TrainModel.main(**options)
        else:
            MultiProcessTrain.main(**options, distributed_world_size=processes)
    return Run(folder)


def assert_equal(two, one, names=LOGGED, logs_after_step=0):
    assert len(two.log['train_reports']) == len(one.log['train_reports']) >= 4
    for of_two, of_one in zip(two.log['train_reports'], one.log['train_reports'], strict=True):
        for name in names if of_one['train_steps'] > logs_after_step else ():
            assert of_two[name] == pytest.approx(of_one[name], rel=1e-5, abs=1e-5), (of_one['train_steps'], name)
    of_two, of_one = two.seen('train'), one.seen('train')
    assert set(of_two) == set(of_one)
    for example, metrics in of_one.items():
        for name in ('loss', 'nll', 'selection', 'fusion', *SELECTED):
            assert of_two[example][name] == pytest.approx(metrics[name], rel=1e-5, abs=1e-5), (example, name)
    assert len(one.gradients(0)) == len(two.gradients(0)) == len(two.gradients(1)) >= 5
    for updates in zip(one.gradients(0), two.gradients(0), two.gradients(1), strict=True):
        for gradients in zip(*updates, strict=True):
            assert gradients[0].abs().max() > 0
            torch.testing.assert_close(gradients[1], gradients[0], **CLOSE)
            assert torch.equal(gradients[1], gradients[2])
    torch.testing.assert_close(two.states['model'], one.states['model'], **CLOSE)


def command_line(options):
    return [word for key, value in options.items() for word in (f'--{key.replace("_", "-")}', str(value))]


def environment(folder, **variables):
    path = os.pathsep.join(str(folder) for folder in (HERE, TESTS, TESTS.parent))
    return {**os.environ, 'PYTHONPATH': path, 'SEEN': str(folder), 'OMP_NUM_THREADS': '1', **variables}


@pytest.fixture(scope='module')
def llm(tiny_llms, tmp_path_factory):
    """The tiny LLM with embeddings so large that contexts differ: they select different prompts."""
    folder = str(tmp_path_factory.mktemp('llm'))
    model = AutoModelForCausalLM.from_pretrained(tiny_llms.opt)
    model.get_input_embeddings().weight.data *= 20
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llms.opt).save_pretrained(folder)
    return folder


@pytest.fixture(scope='module')
def two_with_sgd(llm, tmp_path_factory):
    return train(tmp_path_factory.mktemp('two'), 2, **SGD, llm=llm)


@pytest.fixture(scope='module')
def one_with_sgd(llm, tmp_path_factory):
    return train(tmp_path_factory.mktemp('one'), 1, **{**SGD, 'batchsize': 6}, llm=llm)


# ---- two processes equal one ---------------------------------------------------------------------------------------


def test_sgd_with_clipping_and_two_batches_an_update(two_with_sgd, one_with_sgd):
    assert_equal(two_with_sgd, one_with_sgd)


def test_lora(tiny_llms, tmp_path):
    """Weights of the LLM train through the wrapper that synchronises them, though the LLM itself stands beside it."""
    options = {
        name: value
        for name, value in SGD.items()
        if name not in ('num_prompts', 'prompt_length') and 'lambda' not in name
    }
    options.update(model='spt_parlai.agents:LoraAgent', llm=tiny_llms.opt, max_train_steps=4)
    two, one = train(tmp_path / 'two', 2, **options), train(tmp_path / 'one', 1, **{**options, 'batchsize': 6})
    for of_two, of_one in zip(two.log['train_reports'], one.log['train_reports'], strict=True):
        assert [of_two[name] for name in ('loss', 'nll', 'gnorm')] == pytest.approx(
            [of_one[name] for name in ('loss', 'nll', 'gnorm')], rel=1e-5
        )
    for of_one, first, second in zip(one.gradients(0), two.gradients(0), two.gradients(1), strict=True):
        for gradients in zip(of_one, first, second, strict=True):
            torch.testing.assert_close(gradients[1], gradients[0], **CLOSE)
            assert torch.equal(gradients[1], gradients[2])
    torch.testing.assert_close(two.states['model'], one.states['model'], **CLOSE)
    assert len(one.gradients(0)) == 4 and all(any(gradient.any() for gradient in update) for update in one.gradients(0))


def test_adam(llm, tmp_path):
    two, one = (
        train(tmp_path / 'two', 2, **ADAM, llm=llm),
        train(tmp_path / 'one', 1, **{**ADAM, 'batchsize': 6}, llm=llm),
    )
    assert_equal(two, one)
    steps = [
        {metrics['prompt_usage_1'] for (number, _), metrics in one.seen('train').items() if number // 6 == s}
        for s in range(8)
    ]
    assert {0.0, 1.0} in steps  # within one batch, some contexts selected that prompt and some did not


@pytest.mark.parametrize('assignment, state', [('wta', 'balance'), ('equal', None), ('mixture', 'recent')])
def test_replies_of_all_processes_compete_for_the_prompts(llm, tmp_path, assignment, state):
    options = {**SGD, 'lambda_selection': 1.0, 'prompt_assignment': assignment, 'max_train_steps': 3, 'llm': llm}
    if assignment == 'wta':
        options['assignment_balance'] = 2.0
    if assignment == 'mixture':
        options |= {'adaptive_prompts': 0.33, 'adaptive_every': 2}
    two, one = train(tmp_path / 'two', 2, **options), train(tmp_path / 'one', 1, **{**options, 'batchsize': 6})
    assert len(one.gradients(0)) == len(two.gradients(0)) == 3
    for updates in zip(one.gradients(0), two.gradients(0), two.gradients(1), strict=True):
        for gradients in zip(*updates, strict=True):
            torch.testing.assert_close(gradients[1], gradients[0], **CLOSE)
            assert torch.equal(gradients[1], gradients[2])
    torch.testing.assert_close(two.states['model'], one.states['model'], **CLOSE)
    if assignment == 'mixture':
        assert one.states['splits'] and one.states['splits'] == two.states['splits']
    if state is not None:
        of_one, of_two = (run.states[state].flatten().sort().values for run in (one, two))  # in any order of contexts
        assert of_one.any()
        torch.testing.assert_close(of_one, of_two)


def test_every_example_is_evaluated_once(two_with_sgd, one_with_sgd):
    """Of 7 examples the processes have 4 and 3, of a single one 1 and 0."""
    for fold, count in (('valid', 7), ('test', 1)):
        assert set(two_with_sgd.seen(fold)) == {(number, 0) for number in range(count)}
        of_two, of_one = (run.log[f'final_{fold}_report'] for run in (two_with_sgd, one_with_sgd))
        assert of_two['exs'] == of_one['exs'] == count
        for name in LOGGED[:6]:
            assert of_two[name] == pytest.approx(of_one[name], rel=1e-5, abs=1e-5), (fold, name)


def test_the_contrast_is_within_each_process(llm, tmp_path):
    """The mean of the two halves' losses, each with its own pairs: what --update-freq 2 computes in one process."""
    options = {
        **ORDERED,
        'optimizer': 'sgd',
        'learningrate': 0.5,
        'lambda_contrastive': 5.0,
        'max_train_steps': 5,
        'llm': llm,
    }
    two = train(tmp_path / 'two', 2, **{**options, 'seed': None})
    options['seed'] = two.states['spt']['seed']  # chosen by the first process for both
    assert {metrics['seed'] for metrics in two.seen('train').values()} == {options['seed']}
    assert_equal(two, train(tmp_path / 'halves', 1, **options, update_freq=2), (*LOGGED, 'contrastive', 'spt_loss'))
    whole = train(tmp_path / 'whole', 1, **{**options, 'batchsize': 6})
    assert not torch.allclose(
        whole.gradients(0)[0][0], two.gradients(0)[0][0], **CLOSE
    )  # other pairs, another gradient


def test_stopped_within_an_update_and_continued(one_with_sgd, llm, tmp_path):
    """Ctrl-C reaches only the second process, after the first of an update's two batches: both stop there, and the
    checkpoint has the gradients of both."""
    stopped = {}
    for processes, batchsize, rank, last in ((2, 3, 1, 17), (1, 6, 0, 17)):  # example 17 ends the third batch of 6
        folder = tmp_path / str(processes)
        with pytest.raises(SystemExit) as status:
            train(
                folder,
                processes,
                {'SIGNAL': f'{rank} {last} {int(signal.SIGINT)}'},
                **{**SGD, 'batchsize': batchsize},
                llm=llm,
            )
        assert status.value.code == 128 + signal.SIGINT
        stopped[processes] = load_states(folder / 'model.checkpoint')
    for states in stopped.values():
        assert states['progress']['train_stats']['parleys'] == 3 and states['accumulated']['batches'] == 1
    torch.testing.assert_close(stopped[2]['accumulated']['gradients'], stopped[1]['accumulated']['gradients'], **CLOSE)
    # ParlAI's log of the update that was cut has its second batch alone.
    assert_equal(train(tmp_path / '2', 2, **SGD, llm=llm), one_with_sgd, logs_after_step=2)


# ---- torchrun, SLURM -----------------------------------------------------------------------------------------------


def torchrun(folder, script, *arguments, **variables):
    return subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2', *script, *arguments],
        env=environment(folder, **variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_torchrun_exchanges_what_is_trained_and_nothing_else(two_with_sgd, llm, tmp_path):
    options = command_line({**SGD, 'llm': llm, 'model_file': tmp_path / 'model'})
    done = torchrun(tmp_path, [str(HERE / 'two_processes' / 'counted.py')], 'train_model', *options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = Run(tmp_path)
    assert_equal(run, two_with_sgd)
    torch.testing.assert_close(run.states['model'], two_with_sgd.states['model'], rtol=0, atol=0)

    K, L, D = 3, 2, 16
    values = K * L * D + 2 * (D * D + D)
    assert (
        f'2 processes synchronise {values:,} trained values: {4 * values / 1e3:.1f} kB per update and process '
        'over gloo.' in done.stdout
    )
    for rank in range(2):
        counted = json.loads((tmp_path / f'collectives_{rank}.json').read_text())
        assert sum(counted['held'].values()) == values and set(counted['held']) == set(run.states['model'])
        assert sum(counted['reduced']) == 4 * values * SGD['max_train_steps']  # once an update of two batches
        reduced = [
            shapes for name, shapes in counted['collectives'] if name == 'gloo:all_reduce' and shapes == [[values]]
        ]
        assert len(reduced) == SGD['max_train_steps']
        # Besides: the first process's trained tensors at the start, and small change. The LLM has many more values.
        moved = [
            size(shapes) for name, shapes in counted['collectives'] if name in ('gloo:broadcast', 'gloo:all_reduce')
        ]
        assert max(moved) == values
        assert sum(moved) < values * (SGD['max_train_steps'] + 5)


def size(shapes):
    return sum(int(torch.tensor(shape).prod()) for shape in shapes)


def launch(*words):
    """`torchrun --nproc-per-node 2 --standalone -m WORDS` with forks instead of new processes."""
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    meeting = ['--rdzv-backend', 'c10d', '--rdzv-endpoint', 'localhost:0']
    config, _, _ = config_from_args(parse_args(['--nproc-per-node', '2', *meeting, '-m', *words]))
    config.start_method = warm.start_method()
    elastic_launch(config, warm.script)(*words)


def test_torchrun_ends_when_a_process_ends(llm, tmp_path):
    options = command_line({**SGD, 'llm': llm, 'model_file': tmp_path / 'model', 'max_train_steps': 10000})
    process = warm.Process(
        tmp_path / 'printed',
        launch,
        'spt_parlai.torchrun',
        'train_model',
        *options,
        environment=environment(tmp_path, SIGNAL=f'1 11 {int(signal.SIGTERM)}'),
    )
    assert process.wait(120) == 1, process.printed[-3000:]
    assert 'ChildFailedError' in process.printed
    assert 'saved in ' in process.printed and 'num_epochs completed' not in process.printed


def test_torchrun_says_what_is_missing(monkeypatch):
    from spt_parlai import torchrun

    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(UsageError, match='^RANK is not set: start this with torchrun'):
        torchrun.main(['train_model'])
    for name, value in {
        'RANK': '0',
        'LOCAL_RANK': '0',
        'WORLD_SIZE': '2',
        'MASTER_ADDR': 'localhost',
        'MASTER_PORT': '1',
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match='^interactive: spt_parlai.torchrun runs train_model or eval_model'):
        torchrun.main(['interactive'])
    with pytest.raises(UsageError, match='^--distributed-world-size 3: torchrun started 2 processes'):
        torchrun.main(['train_model', '--distributed-world-size', '3', '-m', 'spt_parlai.agents:SptAgent'])


def test_slurm(two_with_sgd, llm, tmp_path):
    """ParlAI's script under an emulated SLURM: two tasks on one host, which `scontrol` names."""
    scontrol = tmp_path / 'bin' / 'scontrol'
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames local[1]" ] && echo localhost\n')
    scontrol.chmod(0o755)
    port = str(find_free_port())
    options = command_line({**SGD, 'llm': llm, 'model_file': tmp_path / 'model', 'port': port})
    tasks = [
        warm.Process(
            tmp_path / f'output_{rank}',
            warm.script,
            'parlai.scripts.distributed_train',
            *options,
            environment=environment(
                tmp_path,
                PATH=f'{scontrol.parent}:{os.environ["PATH"]}',
                SLURM_JOB_NODELIST='local[1]',
                SLURM_NTASKS='2',
                SLURM_PROCID=str(rank),
                SLURM_LOCALID=str(rank),
            ),
        )
        for rank in range(2)
    ]
    try:
        ended = [task.wait(120) for task in tasks]
    finally:
        for task in tasks:
            task.kill()
    assert ended == [0, 0], ''.join(task.printed[-3000:] for task in tasks)
    torch.testing.assert_close(Run(tmp_path).states['model'], two_with_sgd.states['model'], rtol=0, atol=0)


# ---- parlai multiprocessing_train ----------------------------------------------------------------------------------


def multiprocessing_train(model_file, llm, steps, **more):
    options = {
        **helpers.SMALL,
        'llm': llm,
        'max_train_steps': steps,
        'text_truncate': 48,
        'log_every_n_steps': 1,
        'validation_every_n_steps': 3,
        'validation_max_exs': -1,
        **more,
    }
    train(model_file.parent, 2, **options)


@pytest.fixture(scope='module')
def trained_by_two(tiny_llms, tmp_path_factory):
    model_file = tmp_path_factory.mktemp('two') / 'model'
    multiprocessing_train(model_file, tiny_llms.opt, 6)
    return model_file


def test_validation_equals_a_single_process(trained_by_two):
    two = json.loads(trained_by_two.with_name('model.trainstats').read_text())['final_valid_report']
    one = helpers.evaluate(trained_by_two, skip_generation=True, batchsize=4)
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
        'prompt_information',
    ):
        assert two[name] == pytest.approx(one[name], rel=1e-5), name


def test_a_stopped_run_of_two_continues_exactly(trained_by_two, tiny_llms, tmp_path):
    multiprocessing_train(tmp_path / 'model', tiny_llms.opt, 3)
    multiprocessing_train(tmp_path / 'model', tiny_llms.opt, 6)
    whole, continued = helpers.logged(trained_by_two), helpers.logged(tmp_path / 'model')
    assert continued[5] == pytest.approx(whole[5], rel=1e-5)


def test_a_worker_of_each_process_changes_nothing(tiny_llms, tmp_path):
    """Half an epoch of 74 dialogues is five steps of two processes with four dialogues each."""
    reports = {}
    for workers in (0, 1):
        model_file = tmp_path / str(workers) / 'model'
        more = {'num_epochs': 0.5, 'num_workers': workers, 'validation_every_n_steps': 100, 'validation_max_exs': 4}
        multiprocessing_train(model_file, tiny_llms.opt, 20, **more)
        stats = json.loads(Path(f'{model_file}.trainstats').read_text())
        assert stats['train_steps'] == 5 and stats['total_epochs'] == pytest.approx(40 / 74)
        reports[workers] = [(report['spt_loss'], report['exs']) for report in stats['train_reports']]
    for with_worker, without in zip(reports[1], reports[0], strict=True):
        assert with_worker == pytest.approx(without, rel=1e-5)
