"""SptAgent scores a context by that context alone, and trains prompts and retriever but never the LLM."""

import hashlib

import pytest
import torch
from helpers.real_agents import computed, heard
from helpers.runs import SMALL
from parlai.core.agents import create_agent
from parlai.scripts.train_model import TrainModel

DIALOGUES = [
    (['i ski.'], ['hi'], 'hello , how are you ?'),
    ([], ['what do you do for a living ?', 'i am a nurse .', 'that sounds hard . do you like it ?'], 'yes .'),
    (['i like tea.', 'i have a dog.'], ['bye'], 'bye .'),
]
OTHER_TARGETS = [
    (*dialogue[:2], target)
    for dialogue, target in zip(DIALOGUES, ['no', 'a much longer answer than the one before it .', ''], strict=True)
]
CLOSE = dict(rtol=1e-6, atol=1e-6)


@pytest.fixture(scope='module', params=['opt', 'llama'])
def agent(request, tiny_llms):
    options = {**SMALL, 'llm': getattr(tiny_llms, request.param), 'skip_generation': False, 'no_cuda': True}
    agent = create_agent(TrainModel.setup_args().parse_kwargs(**options))
    # The word embeddings of a tiny LLM are small beside the bias, with which the scores would hardly differ.
    agent.model.retriever.lin_context.bias.data.zero_()
    return agent


def scores(agent, observations):
    with torch.no_grad():
        return computed(agent, agent.batchify(observations))[1].scores


def digest(tensors):
    content = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        content.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def test_a_context_has_its_scores_wherever_it_stands(agent, monkeypatch):
    """Alone or padded in a batch, in training, in evaluation, with any target, and in generation."""
    evaluated = heard(agent, DIALOGUES)
    lengths = [len(o['text_vec']) for o in evaluated]
    assert max(lengths) > 1.5 * min(lengths)
    expected = torch.cat([scores(agent, [o]) for o in evaluated])  # [B, K]
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    torch.testing.assert_close(scores(agent, evaluated), expected, **CLOSE)
    torch.testing.assert_close(scores(agent, evaluated[::-1]).flip(0), expected, **CLOSE)
    torch.testing.assert_close(scores(agent, heard(agent, DIALOGUES, labels='labels')), expected, **CLOSE)
    torch.testing.assert_close(scores(agent, heard(agent, OTHER_TARGETS, labels='labels')), expected, **CLOSE)

    encoder, generated = agent.model.encoder, []

    def watched(*inputs):
        state = encoder(*inputs)
        generated.append(state)
        return state

    monkeypatch.setattr(agent.model, 'encoder', watched)
    replies = agent.batch_act(evaluated)  # evaluates, then generates
    torch.testing.assert_close(generated[0].scores, expected, **CLOSE)
    assert generated[0].selected.tolist() == expected.argmax(1).tolist() == [r['selected_prompt'] for r in replies]
    generated.clear()
    for observation in evaluated:
        agent.batch_act([observation])
    torch.testing.assert_close(torch.cat([state.scores for state in generated]), expected, **CLOSE)


def test_gradients_reach_what_trains_and_nothing_else(agent):
    agent.model.zero_grad()
    computed(agent, agent.batchify(heard(agent, DIALOGUES, labels='labels')))[0].backward()
    assert {name: bool(p.grad.abs().sum() > 0) for name, p in agent.model.named_parameters()} == {
        'soft_prompts.tokens': True,
        'retriever.lin_context.weight': True,
        'retriever.lin_context.bias': True,
        'retriever.lin_prompt.weight': True,
        'retriever.lin_prompt.bias': True,
    }
    assert (agent.model.soft_prompts.tokens.grad.abs().amax((1, 2)) > 0).all()  # every prompt's
    assert all(p.grad is None and not p.requires_grad for p in agent.model.llm.lm.parameters())
    optimized = {id(p) for group in agent.optimizer.param_groups for p in group['params']}
    assert optimized == {id(p) for p in agent.model.parameters()}


def test_100_steps_leave_every_tensor_of_the_llm_as_it_was(agent):
    observations = heard(agent, DIALOGUES, labels='labels')
    before = {name: tensor.clone() for name, tensor in agent.model.state_dict().items()}
    llm = digest(agent.model.llm.lm.state_dict())
    for _ in range(100):
        agent.batch_act(observations)
    assert agent._number_training_updates == 100
    assert digest(agent.model.llm.lm.state_dict()) == llm
    after = agent.model.state_dict()
    assert all(not torch.equal(after[name], before[name]) for name in before)
    assert not any(module.training for module in agent.model.llm.lm.modules())
