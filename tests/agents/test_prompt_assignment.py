"""`--prompt-assignment` in runs: which options it takes, whole dialogues, stopped runs."""

import pytest
import torch
from helpers.option_groups import check_all
from helpers.runs import agent_of, batch_of, evaluate, logged, states, train, training_opt

from spt_parlai.errors import UsageError
from spt_parlai.objective.assignment import balanced


@pytest.mark.parametrize(
    'given, message',
    [
        ({'prompt_assignment': 'gated', 'num_prompts': 1}, 'there is one prompt to assign replies to'),
        ({'prompt_assignment': 'gated', 'assignment_epsilon': 1.0}, '--assignment-epsilon 1.0: give a number of at'),
        ({'prompt_assignment': 'mixture', 'assignment_balance': 0.5}, 'belongs to --prompt-assignment wta'),
        ({'prompt_assignment': 'gated', 'lambda_fusion': 0.5}, 'belongs to --prompt-assignment all'),
        ({'prompt_assignment': 'gated', 'tau_gold': 2.0}, 'belongs to --prompt-assignment all or annealed'),
        ({'prompt_assignment': 'wta', 'assignment_window': 9}, 'belongs to --prompt-assignment gated or mixture'),
        ({'prompt_assignment': 'gated', 'assignment_window': -1}, 'give a whole number of at least 0'),
        ({'assignment_epsilon': 0.1}, 'belongs to --prompt-assignment gated or mixture'),
    ],
)
def test_options_without_effect_are_refused(tiny_llms, given, message):
    with pytest.raises(UsageError, match=message):
        check_all(training_opt(tiny_llms.opt, **given))
    check_all(training_opt(tiny_llms.opt, prompt_assignment='wta', assignment_balance=0.5, assignment_epsilon=0.1))


@pytest.mark.parametrize('kind', ['gated', 'mixture', 'wta', 'annealed', 'equal'])
def test_whole_dialogues_chunks_and_groups_give_the_same_gradients(tiny_llms, kind):
    found = []
    for packed, more in ((True, {}), (True, {'prompt_chunk': 1, 'tokens_at_once': 1}), (False, {})):
        agent = agent_of(tiny_llms.opt, prompt_assignment=kind, dialogue_packing=packed, **more)
        agent.zero_grad()
        agent.model.train()
        loss = agent.compute_loss(batch_of(agent, packed))
        loss.backward()
        found.append(
            (
                loss.detach(),
                agent.competition.states().get('balance', torch.zeros(3)),
                [p.grad for p in agent.model.parameters()],
            )
        )
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-6)
    assert found[0][1].any() == (kind == 'wta')  # who wins is counted


def test_the_balance_is_that_of_the_winners(tiny_llms):
    agent = agent_of(tiny_llms.opt, prompt_assignment='wta', assignment_balance=5.0, lambda_contrastive=0.0)
    agent.model.train()
    batch, bias = batch_of(agent, packed=True), torch.zeros(3)
    for _ in range(3):
        with torch.no_grad():
            prediction = agent._predict(batch)
            agent.losses(batch, prediction)
        likelihood = torch.stack(
            [prediction.log_probs[:, prediction.example == n].sum(1) for n in range(len(prediction.scores))]
        )
        bias = balanced(bias, torch.bincount((likelihood + bias).argmax(1), minlength=3), 5.0)
        torch.testing.assert_close(agent.competition.balance, bias)
    assert len(set(bias.tolist())) == 3


@pytest.mark.parametrize('kind', ['gated', 'mixture'])
def test_recent_replies_are_shared(tiny_llms, kind):
    """The retriever prefers one prompt for all contexts; every prompt learns from some replies nevertheless."""
    agent = agent_of(tiny_llms.opt, prompt_assignment=kind, tau_score=0.01, lambda_contrastive=0.0)
    agent.model.train()
    batch = batch_of(agent, packed=True)
    shares = []
    for _ in range(2):
        with torch.no_grad():
            prediction = agent._predict(batch)
            agent.losses(batch, prediction)
        shares.append(
            agent.objective.responsibilities(
                prediction.log_probs, prediction.scores, prediction.example, batch['bias']
            ).mean(0)
        )
    weights = torch.log_softmax(prediction.scores / 0.01, -1)
    if kind == 'mixture':
        tokens = [prediction.log_probs[:, prediction.example == n] for n in range(len(weights))]
        weights = weights + torch.stack([log_probs.sum(1) for log_probs in tokens])
    torch.testing.assert_close(torch.softmax(weights + batch['bias'], -1).mean(0), torch.full((3,), 1 / 3))
    assert shares[1].max() - shares[1].min() < 0.5 * (shares[0].max() - shares[0].min())


def test_only_recent_replies_count(tiny_llms):
    agent = agent_of(tiny_llms.opt, prompt_assignment='mixture', assignment_window=20, lambda_contrastive=0.0)
    agent.model.train()
    batch = batch_of(agent, packed=True)
    B = len(batch.label_vec)
    assert 10 < B < 20
    for expected in (B, 20, 20):
        with torch.no_grad():
            prediction = agent._predict(batch)
            agent.losses(batch, prediction)
        assert len(agent.competition.recent) == expected
    means = agent.bare_model.context_means(batch.text_vec, batch.row, batch.context_length)
    likelihood = [prediction.log_probs[:, prediction.example == n].sum(1) for n in range(B)]
    torch.testing.assert_close(agent.competition.recent[-B:], torch.cat([means, torch.stack(likelihood)], 1))
    before = agent.competition.recent
    overflowed = prediction._replace(log_probs=prediction.log_probs.where(prediction.example < B - 1, torch.inf))
    agent.competition.observe(agent.bare_model, batch, overflowed)  # its last reply is left out
    torch.testing.assert_close(agent.competition.recent, torch.cat([before, before[-B:-1]])[-20:])


@pytest.mark.parametrize(
    'assignment, state',
    [
        ({'prompt_assignment': 'wta', 'assignment_balance': 3.0}, 'balance'),
        ({'prompt_assignment': 'gated'}, 'recent'),
    ],
)
def test_a_stopped_run_continues_with_its_balance(tiny_llms, tmp_path, assignment, state):
    run = {**assignment, 'log_every_n_steps': 1, 'batchsize': 2}
    run |= {'lambda_contrastive': 0.0, 'validation_every_n_epochs': -1, 'skip_generation': True}
    train(tmp_path / 'whole', tiny_llms.opt, **run, max_train_steps=6)
    train(tmp_path / 'stopped', tiny_llms.opt, **run, max_train_steps=3)
    assert states(tmp_path / 'stopped')[state].any()
    train(tmp_path / 'stopped', tiny_llms.opt, **run, max_train_steps=6)
    whole, stopped = (logged(tmp_path / name) for name in ('whole', 'stopped'))
    assert stopped[max(stopped)] == pytest.approx(whole[max(stopped)], rel=1e-6) and max(stopped) > 3
    for name in ('model', state):
        torch.testing.assert_close(states(tmp_path / 'stopped')[name], states(tmp_path / 'whole')[name])


def test_evaluation_does_not_depend_on_the_batch(tiny_llms):
    untrained = {'model': 'spt_parlai.agents:SptAgent', 'llm': tiny_llms.opt, 'num_prompts': 3, 'prompt_length': 2}
    run = {'prompt_assignment': 'equal', 'lambda_contrastive': 0.0, 'skip_generation': True, 'seed': 1}
    one, four = (evaluate(**untrained, **run, batchsize=size) for size in (1, 4))
    for name in ('ppl', 'nll', 'selection', 'spt_loss', 'prompt_information'):
        assert one[name] == pytest.approx(four[name], rel=1e-5), name
