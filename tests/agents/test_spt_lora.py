"""SptLoraAgent trains prompts, retriever and LoRA matrices, each at its own rate, and continues exactly."""

import pytest
import torch
from helpers.real_agents import computed, heard
from helpers.runs import SMALL, agent_of, evaluate, logged, states, train

DIALOGUES = [
    (['i ski.'], ['hi'], 'hello , how are you ?'),
    ([], ['what do you do for a living ?', 'i am a nurse .', 'that sounds hard . do you like it ?'], 'yes .'),
]
SPT_LORA = {name: SMALL[name] for name in ('num_prompts', 'prompt_length')} | {'lora_rank': 2, 'no_cuda': True}


def agent_for(llm, **more):
    agent = agent_of(llm, 'SptLoraAgent', **SPT_LORA, **more)
    for name, parameter in agent.model.tuned.named_parameters():
        if 'lora_B' in name:  # zero at first, and the gradients at A with it
            torch.nn.init.normal_(parameter)
    return agent


@pytest.mark.parametrize('retriever', [0.0, 0.05])
def test_every_group_has_its_learning_rate(tiny_llms, retriever):
    agent = agent_for(tiny_llms.opt, learningrate=0.02, lora_learningrate=0.003, retriever_learningrate=retriever)
    rates = {id(p): group['lr'] for group in agent.optimizer.param_groups for p in group['params']}
    expected = {'soft_prompts': 0.02, 'retriever': retriever or 0.02, 'tuned': 0.003}
    assert {name: rates[id(p)] for name, p in agent.model.named_parameters()} == {
        name: expected[name.split('.')[0]] for name, _ in agent.model.named_parameters()
    }
    computed(agent, agent.batchify(heard(agent, DIALOGUES, labels='labels')))[0].backward()
    assert all(p.grad.any() for p in agent.model.parameters())


def test_chunks_of_prompts_have_the_same_dropout_in_both_passes(tiny_llms):
    """The gradient of a chunk, which runs twice, is that of what it computed the first time."""
    agent = agent_for(tiny_llms.opt, lora_dropout=0.5, prompt_chunk=1, lambda_contrastive=0.0)
    batch = agent.batchify(heard(agent, DIALOGUES, labels='labels'))
    agent.model.train()
    weight = next(p for name, p in agent.model.named_parameters() if 'lora_B' in name)

    def loss():
        torch.manual_seed(1)
        return computed(agent, batch)[0]

    agent.zero_grad()
    loss().backward()
    step = 1e-3 * weight.grad / weight.grad.norm()
    with torch.no_grad():
        weight += step
        above = float(loss())
        weight -= 2 * step
        below = float(loss())
    assert (above - below) / 2e-3 == pytest.approx(float(weight.grad.norm()), rel=0.02)


def test_a_run_continues_and_is_evaluated(tiny_llms, tmp_path):
    run = {**SPT_LORA, 'log_every_n_steps': 1, 'batchsize': 2, 'validation_every_n_epochs': -1, 'lora_dropout': 0.2}
    run['prompt_assignment'] = 'gated'
    train(tmp_path / 'whole', tiny_llms.opt, 'SptLoraAgent', **run, max_train_steps=4)
    train(tmp_path / 'stopped', tiny_llms.opt, 'SptLoraAgent', **run, max_train_steps=2)
    train(tmp_path / 'stopped', tiny_llms.opt, 'SptLoraAgent', **run, max_train_steps=4)
    whole, stopped = (tmp_path / name for name in ('whole', 'stopped'))
    assert logged(stopped)[3] == pytest.approx(logged(whole)[3], rel=1e-6)
    torch.testing.assert_close(states(stopped)['model'], states(whole)['model'])
    assert {name.split('.')[0] for name in states(whole)['model']} == {'soft_prompts', 'retriever', 'tuned'}
    report = evaluate(whole, skip_generation=True)
    assert report['ppl'] > 1 and {'prompt_usage_2', 'selection'} <= report.keys()
