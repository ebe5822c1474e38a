"""The reranker's script: what it stores of every candidate, against naive computations, and its fit."""


import numpy as np
import pytest
import torch
from helpers.runs import AGENTS, SAMPLE
from parlai.core.agents import create_agent
from parlai.core.params import ParlaiParser

from spt_parlai.metrics.ranking import consensus

C = 4


@pytest.fixture(scope='module')
def agent(tiny_llms):
    opt = {'inference': 'topk', 'topk': 12, 'temperature': 2.0, 'max_new_tokens': 7, 'label_truncate': 24, 'seed': 7}
    opt |= {'model': AGENTS + 'PromptTuningAgent', 'prompt_length': 2, 'llm': tiny_llms.llama, 'datatype': 'valid'}
    agent = create_agent(ParlaiParser(True, True).parse_kwargs(**opt))
    agent.model.eval()
    with torch.no_grad():
        for weight in agent.bare_model.llm.lm.parameters():
            weight.mul_(4 if weight.ndim > 1 else 1)
    return agent


@pytest.fixture(scope='module')
def drawn(project, agent):
    contexts = project.reranker.contexts_of(agent, SAMPLE, 'valid', None, 6, seed=3)
    return contexts, project.reranker.draw_all(agent, contexts, C, at_once=4)


def test_contexts_are_those_of_whole_dialogues(project, agent):
    some, all_of_them = (project.reranker.contexts_of(agent, SAMPLE, 'valid', None, n, seed=3) for n in (1, 10**6))
    assert some == all_of_them[: len(some)] and {c.dialogue for c in some} == {0}
    assert len(all_of_them) > len(some)


@torch.no_grad()
def naive(agent, context, target) -> tuple[float, torch.Tensor, torch.Tensor]:
    """log p(target | context), and the mean states of the reply's words and of the context, from one pass in float64."""
    model = agent.bare_model
    words = model.llm.embed(torch.tensor([*context, *target]))
    row = torch.cat([model.soft_prompts.tokens[0], words])[None]
    output = model.llm.lm(inputs_embeds=row, output_hidden_states=True)
    L, n, hidden = model.soft_prompts.tokens.shape[1], len(context), output.hidden_states[-1][0].double()
    log_probs = output.logits[0, L + n - 1 : -1].double().log_softmax(-1)
    said = hidden[L + n : -1]
    return float(log_probs[range(len(target)), target].sum()), said.sum(0) / max(len(said), 1), hidden[L : L + n].mean(0)


def test_scores_and_states_are_those_of_full_passes(agent, drawn):
    contexts, found = drawn
    nothing = agent._new_history().context(()).ids
    for i, context in enumerate(contexts):
        for j, text in enumerate(found.texts[i]):
            target = agent.batcher.target(text, 24)[0]
            log_prob, hidden, of_context = naive(agent, context.ids, target)
            assert float(found.log_probs[i, j]) == pytest.approx(log_prob, abs=1e-3)
            assert float(found.alone[i, j]) == pytest.approx(naive(agent, nothing, target)[0], abs=1e-3)
            assert int(found.tokens[i, j]) == len(target)
            torch.testing.assert_close(found.hidden[i, j].double(), hidden, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(found.context[i].double(), of_context, atol=1e-4, rtol=1e-3)


def test_the_first_candidate_is_the_greedy_reply_and_the_others_differ(project, agent, drawn):
    contexts, found = drawn
    again = project.reranker.draw_all(agent, contexts, C, at_once=100)
    assert [texts[0] for texts in again.texts] == [texts[0] for texts in found.texts]
    assert all(len(set(texts)) > 1 for texts in found.texts)


def test_draws_follow_the_probabilities(project):
    log_probs = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(8000, 1)
    torch.manual_seed(0)
    tokens, scores = project.reranker.GreedyAndDraws(2, 3)(log_probs, [False] * 8000, range(8000))
    assert (tokens[::2] == 0).all()
    shares = torch.bincount(tokens[1::2], minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95, atol=0.03, rtol=0)
    torch.testing.assert_close(scores, log_probs[0, tokens])


@pytest.mark.parametrize('replies', [['a b b', 'b b c', '', 'a a a b'], ['a'], ['', '']])
def test_consensus_is_the_packages(project, replies):
    assert project.reranker.fast_consensus(replies) == pytest.approx(consensus(replies))


def test_text_scores(project):
    scores = project.reranker.text_scores(['i ski .', 'no'], 'i ski .', 'i ski alone.')
    assert scores[0] == pytest.approx([100, 100, 100, 0, 1]) and scores[1] == pytest.approx([0] * 5, abs=1e-6)


def test_principal_components_are_uncorrelated_and_keep_what_varies(project):
    rng = np.random.default_rng(0)
    states = (rng.normal(size=(500, 3)) @ rng.normal(size=(3, 8)) * 10 + 5).astype(np.float32)
    axes = project.reranker.principal(states, 3)
    few = project.reranker.project(states, *axes).astype(np.float64)
    assert np.cov(few, rowvar=False) == pytest.approx(np.eye(3), abs=0.01)
    linear, *_ = np.linalg.lstsq(np.column_stack([few, np.ones(500)]), states, rcond=None)
    assert np.column_stack([few, np.ones(500)]) @ linear == pytest.approx(states, abs=0.2)
