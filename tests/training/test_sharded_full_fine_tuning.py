"""All weights of a sharded LLM train as those of a whole one; its checkpoints suit any number of processes."""

import signal

import pytest
import torch
from parlai.scripts.train_model import TrainModel
from training import test_sharding as sharding

from spt_parlai.checkpoints.files import load_states

RUN = {
    'model': 'spt_parlai.agents:FullFineTuningAgent',
    'num_prompts': None,
    'prompt_length': None,
    'optimizer': 'adam',
    'learningrate': 1e-2,
    'adam_eps': 1e-4,  # with a smaller one Adam divides rounding by rounding
    'gradient_clip': 0.05,
    'task': 'helpers.two_processes.teachers',
    'datatype': 'train:ordered',
    'skip_generation': True,
    'validation_every_n_epochs': -1,  # the model file is the last step's
    'checkpoint_activations': False,
    'max_train_steps': 4,
    'batchsize': 4,
}
FULL = {**RUN, 'llm_sharding': 'full'}
VALIDATED = {
    'checkpoint_activations': True,
    'max_train_steps': 5,
    'validation_every_n_steps': 1,
    'save_after_valid': True,
}
CLOSE = {'rtol': 1e-6, 'atol': 1e-6}


def train(folder, llm, **options):
    """Those of two processes, unless another number is given; one process has the whole LLM."""
    if options.get('distributed_world_size') != 1:
        return sharding.train(folder, llm, **options)
    del options['distributed_world_size']
    folder.mkdir(parents=True, exist_ok=True)
    options = {**sharding.RUN, **options, 'llm': llm, 'model_file': str(folder / 'model'), 'llm_sharding': None}
    TrainModel.main(**{name: value for name, value in options.items() if value is not None})
    return load_states(folder / 'model')['model'], None


@pytest.fixture(scope='module')
def whole(tiny_llms, tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    return folder, *train(folder, tiny_llms.opt, **RUN)


@pytest.mark.parametrize('more', [{}, VALIDATED])
def test_training(whole, tiny_llms, tmp_path, more):
    """With a row at a time, so that the processes differ in their numbers of passes, and two batches an update."""
    tensors, reports = train(tmp_path, tiny_llms.opt, **{**FULL, **more})
    if more:  # the model file is the best one
        tensors = load_states(tmp_path / 'model.checkpoint')['model']
    torch.testing.assert_close(tensors, whole[1], **CLOSE)
    sharding.assert_equal(reports[:3], whole[2][:3])


def test_other_numbers_of_processes_continue(whole, tiny_llms, tmp_path):
    """Four processes with shares, then two, one with the whole LLM, and four again: as many examples an update."""
    for steps, processes in enumerate((4, 2, 1, 4), start=1):
        more = {'max_train_steps': steps, 'distributed_world_size': processes, 'batchsize': 8 // processes}
        tensors, _ = train(tmp_path, tiny_llms.opt, **{**FULL, **more})
        assert len(list(tmp_path.glob('model.shards-*'))) == (processes > 1)
    torch.testing.assert_close(tensors, whole[1], **CLOSE)


def test_stopped_within_an_update_and_continued(whole, tiny_llms, tmp_path, monkeypatch):
    """Ctrl-C reaches one process, after the first of an update's two batches."""
    monkeypatch.setenv('SIGNAL', f'1 22 {int(signal.SIGINT)}')
    with pytest.raises(SystemExit) as status:
        train(tmp_path, tiny_llms.opt, **FULL)
    assert status.value.code == 128 + signal.SIGINT
    assert load_states(tmp_path / 'model.checkpoint')['accumulated']['batches'] == 1
    monkeypatch.delenv('SIGNAL')
    tensors, _ = train(tmp_path, tiny_llms.opt, **FULL)
    torch.testing.assert_close(tensors, whole[1], **CLOSE)


def test_evaluation(whole):
    """A whole model file replies around shards as around the whole LLM."""
    report, replies = sharding.evaluate(whole[0], 'whole', skip_generation=False)
    sharded, same = sharding.evaluate(whole[0], 'shards', llm_sharding='full', skip_generation=False)
    assert same == replies and len(replies) == 2 and all(replies)
    sharding.assert_equal([{n: float(v) for n, v in sharded.items()}], [{n: float(v) for n, v in report.items()}])
