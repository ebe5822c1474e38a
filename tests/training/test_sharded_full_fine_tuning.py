"""All weights of a sharded LLM train as those of a whole one; its checkpoints suit any number of processes."""

import pytest
import torch
from helpers import runs as helpers
from training.test_sharding import assert_equal, train

from spt_parlai.checkpoints.files import load_states

RUN = {
    'model': 'spt_parlai.agents:FullFineTuningAgent',
    'num_prompts': None,
    'prompt_length': None,
    'learningrate': 1e-2,
    'gradient_clip': 0.05,
    'task': 'helpers.two_processes.teachers',
    'datatype': 'train:ordered',
    'skip_generation': True,
    'optimizer': 'adam',
    'checkpoint_activations': False,
    'max_train_steps': 3,
}
CLOSE = {'rtol': 1e-6, 'atol': 1e-6}


@pytest.fixture(scope='module')
def whole(tiny_llms, tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    return folder, *train(folder, tiny_llms.opt, **RUN)


@pytest.mark.parametrize('more', [{}, {'checkpoint_activations': True}])
def test_training(whole, tiny_llms, tmp_path, more):
    tensors, reports = train(tmp_path, tiny_llms.opt, **{'llm_sharding': 'full', **RUN, **more})
    torch.testing.assert_close(tensors, whole[1], **CLOSE)
    assert_equal(reports, whole[2])
