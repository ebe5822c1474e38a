"""The reranker's script: what it stores of every candidate, against naive computations, and its fit."""

import json
import math

import numpy as np
import pytest
import torch
from helpers.runs import AGENTS, SAMPLE, train
from parlai.core.agents import create_agent
from parlai.core.params import ParlaiParser
from typer.testing import CliRunner

from spt_parlai.errors import UsageError
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
    contexts = project.candidate_draws.contexts_of(agent, SAMPLE, 'valid', None, 6, seed=3)
    return contexts, project.candidate_draws.draw_all(agent, contexts, C, at_once=4)


def test_contexts_are_those_of_whole_dialogues(project, agent):
    some, all_of_them = (
        project.candidate_draws.contexts_of(agent, SAMPLE, 'valid', None, n, seed=3) for n in (1, 10**6)
    )
    assert some == all_of_them[: len(some)] and {c.dialogue for c in some} == {0}
    assert len(all_of_them) > len(some)


@torch.no_grad()
def naive(agent, context, target) -> tuple[float, torch.Tensor, torch.Tensor]:
    """log p(target | context), and the mean states of the reply's words and of the context, from one pass."""
    model = agent.bare_model
    words = model.llm.embed(torch.tensor([*context, *target]))
    row = torch.cat([model.soft_prompts.tokens[0], words])[None]
    output = model.llm.lm(inputs_embeds=row, output_hidden_states=True)
    L, n, hidden = model.soft_prompts.tokens.shape[1], len(context), output.hidden_states[-1][0].double()
    log_probs = output.logits[0, L + n - 1 : -1].double().log_softmax(-1)
    said = hidden[L + n : -1]
    return (
        float(log_probs[range(len(target)), target].sum()),
        said.sum(0) / max(len(said), 1),
        hidden[L : L + n].mean(0),
    )


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
    again = project.candidate_draws.draw_all(agent, contexts, C, at_once=100)
    assert [texts[0] for texts in again.texts] == [texts[0] for texts in found.texts]
    assert all(len(set(texts)) > 1 for texts in found.texts)


def test_draws_follow_the_probabilities(project):
    log_probs = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(8000, 1)
    torch.manual_seed(0)
    tokens, scores = project.candidate_draws.GreedyAndDraws(2, 3)(log_probs, [False] * 8000, range(8000))
    assert (tokens[::2] == 0).all()
    shares = torch.bincount(tokens[1::2], minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95, atol=0.03, rtol=0)
    torch.testing.assert_close(scores, log_probs[0, tokens])


@pytest.mark.parametrize('replies', [['a b b', 'b b c', '', 'a a a b'], ['a'], ['', '']])
def test_consensus_is_the_packages(project, replies):
    assert project.candidate_draws.fast_consensus(replies) == pytest.approx(consensus(replies))


def test_text_scores(project):
    scores = project.candidate_draws.text_scores(['i ski .', 'no'], 'i ski .', 'i ski alone.')
    assert scores[0] == pytest.approx([100, 100, 100, 0, 1]) and scores[1] == pytest.approx([0] * 5, abs=1e-6)


def test_principal_components_are_uncorrelated_and_keep_what_varies(project):
    rng = np.random.default_rng(0)
    states = (rng.normal(size=(500, 3)) @ rng.normal(size=(3, 8)) * 10 + 5).astype(np.float32)
    axes = project.candidate_draws.principal(states, 3)
    few = project.candidate_draws.project(states, *axes).astype(np.float64)
    assert np.cov(few, rowvar=False) == pytest.approx(np.eye(3), abs=0.01)
    linear, *_ = np.linalg.lstsq(np.column_stack([few, np.ones(500)]), states, rcond=None)
    assert np.column_stack([few, np.ones(500)]) @ linear == pytest.approx(states, abs=0.2)


# ---- fit ---------------------------------------------------------------------------------------------------------

WORDS = ('i', 'ski', 'run', 'cats', 'dogs', 'you', 'like', '?')


def write_drawn(path, N=240, d=4):
    """Candidates of random words, of which the first hidden number tells how good they are."""
    rng = np.random.default_rng(0)
    replies = [[' '.join(rng.choice(WORDS, 5)) for _ in range(C)] for _ in range(N)]
    hidden = rng.normal(size=(N, C, d))
    arrays = {name: rng.normal(size=(N, C)) for name in ('log_probs', 'alone', 'consensus', 'persona')}
    texts = {'replies': replies, 'said': ['so ?'] * N, 'persona': ['i ski .'] * N}
    texts['gold'] = [group[best] for group, best in zip(replies, hidden[..., 0].argmax(1), strict=True)]
    quality = 10 * np.repeat(hidden[..., :1], 3, -1) + rng.normal(size=(N, C, 3))
    tokens, context = np.full((N, C), 6), rng.normal(size=(N, d))
    np.savez(
        path,
        **arrays,
        valid=np.arange(N) >= N // 2,
        dialogue=np.arange(N) % (N // 2) // 4,
        quality=quality,
        tokens=tokens,
        hidden=hidden,
        context=context,
        texts=np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8),
    )
    return path


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    return write_drawn(tmp_path_factory.mktemp('drawn') / 'candidates.npz')


@pytest.fixture(scope='module')
def candidates(project, file):
    return project.candidate_scorer.read_drawn(file)


def test_the_risk_is_less_the_expected_quality(project):
    scores, quality = (
        torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 2.0]]),
        torch.tensor([[3.0, 6.0, 0.0], [1.0, 1.0, 1.0]]),
    )
    odds = [math.exp(1), 1, math.exp(-1)]
    expected = (3 * odds[0] + 6 * odds[1]) / sum(odds) - 3  # less the mean of the first context; the second is even
    assert float(project.candidate_scorer.risk(scores, quality)) == pytest.approx(-expected / 2)


def test_dialogues_are_split_whole_and_the_valid_fold_is_in_neither_part(project, candidates):
    train, tune = project.candidate_scorer.split(candidates, seed=1)
    assert not set(train.dialogue.tolist()) & set(tune.dialogue.tolist())
    assert len(train.quality) + len(tune.quality) == int((~candidates.valid).sum())
    assert len(train.replies) == len(train.quality) and len(tune.dialogue.unique()) == round(0.15 * 30)
    assert not train.valid.any() and not tune.valid.any()


def test_an_mlp_finds_what_hidden_states_tell_and_a_linear_layer_of_scalars_cannot(project, candidates):
    rows = project.reranker.choices(candidates, seeds=(1, 2))
    valid = candidates.part(candidates.valid)
    gain = {name: float(valid.quality.gather(1, choice[:, None]).mean()) for name, choice in rows.items()}
    assert min(gain['MLP'], gain['MLP, without consensus']) > 0.6 * gain['the best, in hindsight']
    assert gain['linear'] < 0.3 * gain['the best, in hindsight']
    assert rows['greedy'].unique().tolist() == [0] and rows['one sample'].unique().tolist() == [1]
    assert (rows['MMI'] == (valid.scalars[..., 0] - 0.5 * valid.scalars[..., 1]).argmax(1)).all()


def test_fit_shows_every_row_with_its_test(project, file):
    shown = CliRunner().invoke(project.reranker.app, ['fit', str(file), '--seeds', '1'], terminal_width=200)
    rows = {line.split('|')[1].strip(): line for line in shown.output.splitlines() if line.startswith('|')}
    assert shown.exit_code == 0 and float(rows['the best, in hindsight'].split('|')[2]) > 90
    assert [name for name in rows if 'p 0' in rows[name] or 'p 1' in rows[name]] == list(project.reranker.COMPARED)


@pytest.mark.parametrize('content', [b'no', None])
def test_a_file_without_candidates_is_refused(project, tmp_path, content):
    path = tmp_path / 'x.npz'
    if content:
        path.write_bytes(content)
    with pytest.raises(UsageError, match='x.npz holds no candidates'):
        project.candidate_scorer.read_drawn(path)


def test_draw_writes_what_fit_reads(project, tiny_llms, tmp_path, monkeypatch):
    """Around a tiny LLM, with the sample task in place of ConvAI2."""
    model, out = tmp_path / 'model', tmp_path / 'candidates.npz'
    train(model, tiny_llms.opt, 'PromptTuningAgent', prompt_length=2, max_train_steps=1)
    words = f'draw --model {model} --task {SAMPLE} --train 6 --valid 4 --candidates 3 --dimensions 5 --out {out}'
    shown = CliRunner().invoke(project.reranker.app, words.split(), catch_exceptions=False)
    assert shown.exit_code == 0
    drawn = project.candidate_scorer.read_drawn(out)
    N = len(drawn.quality)
    assert drawn.hidden.shape == (N, 4, 5) and drawn.context.shape == (N, 5) and len(drawn.replies) == N
    assert (~drawn.valid).sum() >= 6 and drawn.valid.sum() >= 4
    i = N - 1
    for j, reply in enumerate(drawn.replies[i]):
        assert float(drawn.quality[i, j]) == pytest.approx(
            project.candidate_draws.text_scores([reply], drawn.gold[i], '')[0, :3].mean(), abs=1e-3
        )
