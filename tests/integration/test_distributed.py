"""N processes train as one process with N times the batch: `multiprocessing_train`, in process, against `train_model`."""

import json

import helpers
import pytest
import torch
from parlai.scripts.multiprocessing_train import MultiProcessTrain
from parlai.scripts.train_model import TrainModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from spt_parlai.checkpoint import load_states

TASK = 'two_processes.teachers'
ORDERED = {
    'task': TASK, 'datatype': 'train:ordered', 'log_every_n_steps': 1, 'validation_max_exs': -1, 'short_final_eval': False,
    'skip_generation': True, 'validation_every_n_epochs': -1,  # the model file is the last step's
}
PER_EXAMPLE = ('loss', 'nll', 'selection', 'fusion', 'prompt_usage_0', 'prompt_usage_1', 'prompt_usage_2')
LOGGED = ('ppl', 'loss', 'nll', 'selection', 'fusion', 'token_acc', 'gnorm', *PER_EXAMPLE[-3:])


class Run:
    """What a training run in `folder` left behind."""

    def __init__(self, folder):
        self.model_file = folder / 'model'
        self.states = load_states(self.model_file)
        self.log = json.loads((folder / 'model.trainstats').read_text())
        lines = [json.loads(line) for path in sorted(folder.glob('[0-9].jsonl')) for line in path.read_text().splitlines()]
        self.seen = {fold: [line for line in lines if line['fold'] == fold] for fold in ('train', 'valid', 'test')}

    def examples(self):
        """{(example, how often it was seen before): its metrics}, in training."""
        found = {}
        for line in self.seen['train']:
            times = sum(number == line['number'] for number, _ in found)
            found[line['number'], times] = line
        return found


def run(folder, llm, monkeypatch, processes, **options):
    """Train in `folder`; one process uses `train_model` itself."""
    folder.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setenv('SEEN', str(folder))
        options = {**helpers.SMALL, **ORDERED, 'llm': llm, 'model_file': str(folder / 'model'), **options}
        if processes == 1:
            TrainModel.main(**options)
        else:
            MultiProcessTrain.main(**options, distributed_world_size=processes)
    return Run(folder)


def assert_equal(two, one, names=LOGGED):
    assert len(two.log['train_reports']) == len(one.log['train_reports']) >= 3
    for of_two, of_one in zip(two.log['train_reports'], one.log['train_reports'], strict=True):
        for name in names:
            assert of_two[name] == pytest.approx(of_one[name], rel=1e-5, abs=1e-5), (of_one['train_steps'], name)
    of_two, of_one = two.examples(), one.examples()
    assert set(of_two) == set(of_one)
    for example, metrics in of_one.items():  # prompt_usage_k: which prompt was selected, 0 or 1
        for name in PER_EXAMPLE:
            assert of_two[example][name] == pytest.approx(metrics[name], rel=1e-5, abs=1e-5), (example, name)
    for name, tensor in one.states['model'].items():
        torch.testing.assert_close(two.states['model'][name], tensor, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f'{n}: {m}')


@pytest.fixture(scope='module')
def llm(tiny_llms, tmp_path_factory):
    """The tiny LLM with embeddings so large that contexts differ: they select different prompts."""
    folder = str(tmp_path_factory.mktemp('llm'))
    model = AutoModelForCausalLM.from_pretrained(tiny_llms.opt)
    model.get_input_embeddings().weight.data *= 20
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llms.opt).save_pretrained(folder)
    return folder


SGD = {'optimizer': 'sgd', 'learningrate': 1.0, 'lambda_selection': 100.0, 'gradient_clip': 1.0, 'update_freq': 2, 'max_train_steps': 5}
ADAM = {'optimizer': 'adam', 'learningrate': 0.01, 'max_train_steps': 8}


@pytest.mark.parametrize('options', [SGD, ADAM], ids=['sgd, clipped, two batches an update', 'adam'])
def test_two_processes_equal_one_with_twice_the_batch(options, llm, tmp_path, monkeypatch):
    options = {**options, 'lambda_contrastive': 0.0}
    two = run(tmp_path / 'two', llm, monkeypatch, 2, **options, batchsize=3)
    one = run(tmp_path / 'one', llm, monkeypatch, 1, **options, batchsize=6)
    assert_equal(two, one)
    assert len({tuple(metrics[f'prompt_usage_{k}'] for k in range(3)) for metrics in one.examples().values()}) > 1
    # Validation on 7 examples, test on 1: the processes have 4 and 3, 1 and 0, and none is lost or counted twice.
    for fold, count in (('valid', 7), ('test', 1)):
        assert sorted(line['number'] for line in two.seen[fold])[-count:] == list(range(count))
        of_two, of_one = two.log[f'final_{fold}_report'], one.log[f'final_{fold}_report']
        assert of_two['exs'] == of_one['exs'] == count
        assert of_two['ppl'] == pytest.approx(of_one['ppl'], rel=1e-5)


def test_the_contrast_is_each_process_s_own(llm, tmp_path, monkeypatch):
    """The mean of the two halves' losses, each with the pairs of its half: what --update-freq 2 computes in one process."""
    options = {'optimizer': 'sgd', 'learningrate': 0.5, 'lambda_contrastive': 5.0}
    two = run(tmp_path / 'two', llm, monkeypatch, 2, **options, batchsize=3, max_train_steps=5)
    one = run(tmp_path / 'one', llm, monkeypatch, 1, **options, batchsize=3, max_train_steps=5, update_freq=2)
    assert_equal(two, one, (*LOGGED, 'contrastive', 'spt_loss'))
    whole = run(tmp_path / 'whole', llm, monkeypatch, 1, **options, batchsize=6, max_train_steps=5)
    assert not torch.allclose(whole.states['model']['soft_prompts.tokens'], one.states['model']['soft_prompts.tokens'], atol=1e-5)
