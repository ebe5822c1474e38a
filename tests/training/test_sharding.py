"""A sharded LLM trains, evaluates and replies as the whole one does, in processes that have different work."""

import contextlib
import json
import os
import signal
import time

import psutil
import pytest
import torch
from helpers import runs as helpers
from helpers import warm
from parlai.scripts.multiprocessing_eval import MultiProcessEval
from parlai.scripts.multiprocessing_train import MultiProcessTrain

from spt_parlai.checkpoints.files import load_states
from spt_parlai.errors import UsageError

RUN = {
    **helpers.SMALL,
    'batchsize': 3,
    'text_truncate': 48,
    'tokens_at_once': 1,  # a row at a time: the processes differ in the number of micro-batches
    'update_freq': 2,
    'max_train_steps': 2,
    'log_every_n_steps': 1,
    'validation_max_exs': 5,  # one process has more of them than the other
    'skip_generation': False,
    'checkpoint_activations': True,
}
LORA = {'model': 'spt_parlai.agents:LoraAgent', 'num_prompts': None, 'prompt_length': None, 'tokens_at_once': 0}
CHUNKS = {'prompt_chunk': 1, 'checkpoint_activations': False}
TIMES = ('time', 'train_time', 'tps', 'ups', 'exps', 'ctps', 'ltps', 'tpb', 'ctpb', 'ltpb')


def train(folder, llm, **more):
    """The trained tensors, and the reports, of a run of two processes."""
    folder.mkdir(parents=True, exist_ok=True)
    options = {**RUN, 'llm': llm, 'model_file': str(folder / 'model'), 'distributed_world_size': 2, **more}
    with pytest.MonkeyPatch.context() as patch:
        warm.patch_workers(patch)
        MultiProcessTrain.main(**{name: value for name, value in options.items() if value is not None})
    stats = json.loads((folder / 'model.trainstats').read_text())
    return load_states(folder / 'model')['model'], [*stats['train_reports'], stats['final_valid_report']]


def evaluate(folder, name, **more):
    """The report and the replies of both processes."""
    options = {'task': helpers.SAMPLE, 'datatype': 'valid', 'batchsize': 3, 'num_examples': 5, **more}
    options.update(model_file=str(folder / 'model'), world_logs=str(folder / name), distributed_world_size=2)
    with pytest.MonkeyPatch.context() as patch:
        warm.patch_workers(patch)
        report = MultiProcessEval.main(**options)
    replies = [
        [turn['text'] for line in path.read_text().splitlines() for turn in json.loads(line)['dialog'][0]]
        for path in sorted(folder.glob(f'{name}*.jsonl'))
    ]
    return report, replies


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        names = [n for n, v in other.items() if isinstance(v, (int, float)) and n not in TIMES]
        assert {n: one[n] for n in names} == pytest.approx({n: other[n] for n in names}, rel=1e-6, abs=1e-6)


@pytest.fixture(scope='module')
def whole(tiny_llms, tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    return folder, *train(folder, tiny_llms.opt)


@pytest.mark.parametrize('more', [{}, CHUNKS])
def test_training(whole, tiny_llms, tmp_path, more):
    """With word embeddings that the head shares, recomputed layers, or prompts that run one by one."""
    tensors, reports = train(tmp_path, tiny_llms.opt, llm_sharding='full', **more)
    torch.testing.assert_close(tensors, whole[1], rtol=1e-6, atol=1e-6)
    assert_equal(reports, whole[2])
    if not more:  # the model file opens around a whole LLM, in one process
        asked = {'num_examples': 4, 'skip_generation': True}
        report = helpers.evaluate(tmp_path / 'model', **asked)
        assert_equal([report], [helpers.evaluate(whole[0] / 'model', **asked)])


def test_lora(tiny_llms, tmp_path):
    """Matrices inside the layers train; the head has weights of its own."""
    expected = train(tmp_path / 'whole', tiny_llms.llama, **LORA)
    tensors, reports = train(tmp_path / 'shards', tiny_llms.llama, llm_sharding='hybrid', **LORA)
    torch.testing.assert_close(tensors, expected[0], rtol=1e-6, atol=1e-6)
    assert_equal(reports, expected[1])


def test_evaluation(whole):
    """A model that was trained around a whole LLM replies around a sharded one."""
    report, replies = evaluate(whole[0], 'whole')
    sharded, same = evaluate(whole[0], 'shards', llm_sharding='full')
    assert same == replies and len(replies) == 2 and all(replies)
    assert_equal([{n: float(v) for n, v in sharded.items()}], [{n: float(v) for n, v in report.items()}])


# ---- runs that end early -------------------------------------------------------------------------------------------

ENDED = {**RUN, 'llm_sharding': 'full', 'task': 'helpers.two_processes.teachers', 'datatype': 'train:ordered'}
ENDED.update(max_train_steps=4, save_every_n_secs=0.001, update_freq=1, skip_generation=True)


@pytest.fixture(scope='module')
def undisturbed(tiny_llms, tmp_path_factory):
    return train(tmp_path_factory.mktemp('undisturbed'), tiny_llms.opt, **ENDED)[0]


@pytest.mark.parametrize('sent', [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_dies(undisturbed, tiny_llms, tmp_path, monkeypatch, sent):
    """The run ends at once, names the process, and continues from its last checkpoint as if nothing had happened."""
    monkeypatch.setenv('SIGNAL', f'1 9 {int(sent)}')  # the second process, in its second batch
    with pytest.raises(UsageError, match=f'^process 1 was ended by {sent.name}; the same command continues'):
        train(tmp_path, tiny_llms.opt, **ENDED)
    monkeypatch.delenv('SIGNAL')
    torch.testing.assert_close(train(tmp_path, tiny_llms.opt, **ENDED)[0], undisturbed, rtol=1e-6, atol=1e-6)


def test_ctrl_c(undisturbed, tiny_llms, tmp_path, monkeypatch):
    """It reaches one process; all stop after the same batch, and the run continues as if nothing had happened."""
    monkeypatch.setenv('SIGNAL', f'1 9 {int(signal.SIGINT)}')
    with pytest.raises(SystemExit) as status:
        train(tmp_path, tiny_llms.opt, **ENDED)
    assert status.value.code == 128 + signal.SIGINT
    assert load_states(tmp_path / 'model.checkpoint')['progress']['train_stats']['parleys'] == 2
    monkeypatch.delenv('SIGNAL')
    torch.testing.assert_close(train(tmp_path, tiny_llms.opt, **ENDED)[0], undisturbed, rtol=1e-6, atol=1e-6)


def test_sigterm_for_the_first_process(undisturbed, tiny_llms, tmp_path):
    """It starts the others, and when it ends they end, too."""
    options = {**ENDED, 'llm': tiny_llms.opt, 'model_file': tmp_path / 'model', 'distributed_world_size': 2}
    words = [word for name, value in options.items() for word in (f'--{name.replace("_", "-")}', value)]
    environment = {**os.environ, 'SIGNAL': f'0 6 {int(signal.SIGTERM)}'}
    run = warm.Process(
        tmp_path / 'output', warm.script, 'parlai.scripts.multiprocessing_train', *words, environment=environment
    )
    assert run.wait(60) == -signal.SIGTERM
    deadline = time.monotonic() + 20
    while has_processes(run.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not has_processes(run.pid)
    torch.testing.assert_close(train(tmp_path, tiny_llms.opt, **ENDED)[0], undisturbed, rtol=1e-6, atol=1e-6)


def has_processes(group):
    """Whether any process of a group still runs; one that has ended may wait to be collected."""
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False
