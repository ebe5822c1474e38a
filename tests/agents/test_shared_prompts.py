"""`--prompt-shared-rank` in runs: the same gradients in pieces, stopped runs, what reads the model file."""

import pytest
import torch
from helpers.option_groups import check_all
from helpers.runs import agent_of, batch_of, evaluate, states, train, training_opt

from spt_parlai.checkpoints.prompts import read_prompts
from spt_parlai.errors import UsageError


@pytest.mark.parametrize(
    'given, message',
    [
        ({'num_prompts': 1, 'prompt_shared_rank': 1}, 'there is one prompt, which has nothing to share'),
        ({'prompt_shared_rank': 5}, '--prompt-shared-rank 5: give a whole number from 1 to 4'),
    ],
)
def test_ranks_that_cannot_be(tiny_llms, given, message):
    with pytest.raises(UsageError, match=message):
        check_all(training_opt(tiny_llms.opt, **given))


def test_pieces_give_the_same_gradients(tiny_llms):
    found = []
    for more in ({}, {'prompt_chunk': 1, 'tokens_at_once': 1}):
        agent = agent_of(tiny_llms.opt, prompt_shared_rank=2, **more)
        agent.zero_grad()
        agent.model.train()
        agent.compute_loss(batch_of(agent, packed=True)).backward()
        found.append([p.grad for p in agent.bare_model.soft_prompts.parameters()])
    assert len(found[0]) == 3 and all(gradient.any() for gradient in found[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_a_stopped_run_and_its_readers(tiny_llms, tmp_path):
    run = {'prompt_shared_rank': 2, 'retriever_learningrate': 0.001, 'batchsize': 2, 'lambda_contrastive': 0.0}
    run |= {'validation_every_n_epochs': -1, 'skip_generation': True}
    train(tmp_path / 'whole', tiny_llms.opt, **run, max_train_steps=4)
    for steps in (2, 4):
        train(tmp_path / 'stopped', tiny_llms.opt, **run, max_train_steps=steps)
    whole, stopped = (states(tmp_path / name) for name in ('whole', 'stopped'))
    torch.testing.assert_close(stopped['model'], whole['model'])
    rates = [(len(group['params']), group['lr']) for group in whole['optimizer']['param_groups']]
    assert rates == [(3, 0.01), (4, 0.001)]

    model = whole['model']
    prompts = model['soft_prompts.shared'] + model['soft_prompts.own'] @ model['soft_prompts.directions']
    torch.testing.assert_close(read_prompts(tmp_path / 'whole'), prompts)
    report = evaluate(tmp_path / 'whole', skip_generation=True)
    begun = evaluate(
        model='spt_parlai.agents:SptAgent',
        **{'llm': tiny_llms.opt, 'num_prompts': 3, 'prompt_length': 2, 'label_truncate': 24, 'max_new_tokens': 8},
        skip_generation=True,
        text_truncate=48,
        prompt_init=f'file:{tmp_path / "whole"}',
    )
    assert begun['nll'] == pytest.approx(report['nll'], rel=1e-5)
    with pytest.raises(UsageError, match='holds --prompt-shared-rank 2, not 0'):
        evaluate(tmp_path / 'whole', prompt_shared_rank=0)
