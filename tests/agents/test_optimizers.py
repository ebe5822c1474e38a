"""Every optimizer of ParlAI that can train soft prompts trains them, and continues exactly after a stop."""

import pytest
import torch
from helpers.runs import agent_of, train

SETTINGS = {
    'adafactor': {'adafactor_eps': '1e-20,1e-2'},
    'adadelta': {},
    'adagrad': {},
    'adam': {'betas': '0.5,0.9', 'adam_eps': 1e-6},
    'adamax': {'betas': '0.5,0.9'},
    'adamw': {},
    'asgd': {},
    'mem_eff_adam': {},
    'nadam': {},
    'radam': {},
    'rmsprop': {'momentum': 0.5},
    'rprop': {},
    'sgd': {'momentum': 0.5, 'nesterov': True},
}


def trained(path):
    return torch.load(path, weights_only=True)['model']


@pytest.mark.parametrize('optimizer', SETTINGS)
def test_trains_and_continues_exactly(tiny_llms, tmp_path, optimizer):
    options = {'optimizer': optimizer, 'learningrate': 0.05, **SETTINGS[optimizer]}
    if optimizer != 'rprop':
        options['weight_decay'] = 0.01

    def run(name, steps):
        options['validation_every_n_epochs'] = -1
        train(tmp_path / name, tiny_llms.opt, max_train_steps=steps, batchsize=2, validation_max_exs=4, **options)
        return trained(tmp_path / name)

    begun = agent_of(tiny_llms.opt, model_file=tmp_path / 'begun').model.state_dict()
    whole = run('whole', 4)
    half = run('stopped', 2)
    continued = run('stopped', 4)
    for name, tensor in whole.items():
        assert not torch.equal(begun[name], half[name]), f'{name} is not trained'
        assert not torch.equal(half[name], tensor)
        rounding = 1e-4 if optimizer == 'mem_eff_adam' else 1e-7  # torch makes its loaded step count a float32
        torch.testing.assert_close(continued[name], tensor, rtol=0, atol=rounding)


@pytest.mark.parametrize(
    'optimizer, options, wanted',
    [
        ('sgd', {'momentum': 0.5, 'nesterov': False}, {'momentum': 0.5, 'nesterov': False}),
        ('sgd', {'momentum': 0.5}, {'momentum': 0.5, 'nesterov': True}),
        ('adam', {'betas': '0.5,0.9'}, {'betas': (0.5, 0.9)}),
        ('adam', {'adam_eps': 1e-5, 'weight_decay': 0.2}, {'eps': 1e-5, 'weight_decay': 0.2}),
        ('adafactor', {'adafactor_eps': '1e-20,1e-2'}, {'eps': (1e-20, 1e-2)}),
        ('rmsprop', {'momentum': 0.3}, {'momentum': 0.3}),
    ],
)
def test_its_settings_reach_it(tiny_llms, tmp_path, optimizer, options, wanted):
    agent = agent_of(tiny_llms.opt, model_file=tmp_path / 'm', optimizer=optimizer, **options)
    group = agent.optimizer.param_groups[0]
    assert {name: group[name] for name in wanted} == wanted
