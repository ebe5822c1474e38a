"""The agent, in float32 and in batches, gives the numbers that `make_golden.py` computed in float64, one by one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import tiny
from helpers.real_agents import agent_with, computed, heard, metric

from spt_parlai.objective.losses import gold_distribution, prompt_nll
from spt_parlai.objective.similarity import sentence_bleu

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / 'golden.json').read_text(encoding='utf-8'))
CLOSE = dict(rtol=1e-5, atol=1e-5)


@pytest.fixture(scope='module', params=GOLDEN)
def kind(request):
    return request.param


@pytest.fixture(scope='module', params=['context', 'persona'])
def agent(kind, request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f'{kind}-{request.param}')
    tiny.write_llm(kind, folder / 'llm')
    return agent_with(
        tiny.trained_tensors(),
        folder / 'model',
        llm=str(folder / 'llm'),
        num_prompts=tiny.K,
        prompt_length=tiny.L,
        text_truncate=tiny.TEXT_TRUNCATE,
        max_new_tokens=tiny.NEW_TOKENS,
        similarity_threshold=tiny.THRESHOLD,
        contrastive_text=request.param,
    )


@pytest.fixture
def golden(kind):
    return GOLDEN[kind]


@pytest.fixture
def examples(golden):
    return golden['examples']


def close(actual, expected):
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64), **CLOSE
    )


def test_the_script_reproduces_its_numbers():
    checked = subprocess.run([sys.executable, HERE / 'make_golden.py', '--check'], capture_output=True, text=True)
    assert checked.returncode == 0 and 'is as computed now' in checked.stdout, checked.stdout + checked.stderr


def test_the_script_notices_another_number():
    from golden.make_golden import differences

    changed = json.loads(json.dumps(GOLDEN))
    assert differences(changed, GOLDEN) == []
    changed['opt']['examples'][1]['nll'][2] += 1e-6
    changed['llama']['examples'][0]['context_ids'].pop()
    assert [d.split(':')[0] for d in differences(changed, GOLDEN)] == [
        '.opt.examples[1].nll[2]',
        '.llama.examples[0].context_ids',
    ]


def test_tokens(agent, examples):
    for observation, expected in zip(heard(agent, tiny.DIALOGUES), examples, strict=True):
        assert observation['text_vec'].tolist() == expected['context_ids']
        assert observation['eval_labels_vec'].tolist() == expected['target_ids']
        assert observation['full_text'] == expected['context']


@pytest.mark.parametrize('batchsize', [1, len(tiny.DIALOGUES)])
def test_each_example(agent, examples, batchsize):
    """Alone and in a batch: scores, NLL under every prompt, gold distribution; and as ParlAI reports them: the losses
    and the selected prompt."""
    observations = heard(agent, tiny.DIALOGUES)
    for begin in range(0, len(examples), batchsize):
        batch = agent.batchify(observations[begin : begin + batchsize])
        expected = examples[begin : begin + batchsize]
        prediction = computed(agent, batch)[1]
        close(prediction.scores, [e['scores'] for e in expected])
        nll = prompt_nll(prediction.log_probs, prediction.example, len(expected))
        close(nll.T, [e['nll'] for e in expected])
        close(gold_distribution(nll, 1.0), [e['gold'] for e in expected])
    replies = [r for n in range(0, len(examples), batchsize) for r in agent.batch_act(observations[n : n + batchsize])]
    for reply, expected in zip(replies, examples, strict=True):
        assert metric(reply, 'nll') == pytest.approx(sum(expected['nll']), abs=1e-5 * tiny.K)
        for name in ('selection', 'fusion'):
            assert metric(reply, name) == pytest.approx(expected[name], rel=1e-5, abs=1e-5)
        assert metric(reply, 'loss') == pytest.approx(expected['nll'][expected['selected']], rel=1e-5)
        assert reply['selected_prompt'] == expected['selected']
        close(reply['prompt_scores'], [float(f'{s:.4g}') for s in expected['scores']])
        assert [metric(reply, f'prompt_usage_{k}') for k in range(tiny.K)] == [
            k == expected['selected'] for k in range(tiny.K)
        ]


def test_the_batch(agent, golden):
    """Contrast, total, and the gradients of the total, for both texts that the contrast can compare."""
    which = agent.opt['contrastive_text']
    observations = heard(agent, tiny.DIALOGUES, labels='labels')
    replies = agent.batch_act(heard(agent, tiny.DIALOGUES))
    pairs = len(replies) * (len(replies) - 1) // 2
    shares = [reply['metrics']['contrastive'] for reply in replies]
    close(float(sum(shares[1:], shares[0]).value()), golden['contrast'][which])
    assert sum(share._denom for share in shares) == pairs
    agent.model.zero_grad()
    total, _ = computed(agent, agent.batchify(observations))
    close(total.detach(), golden['total'][which])
    total.backward()
    norms = {name: p.grad.norm().item() for name, p in agent.model.named_parameters()}
    assert norms == {
        name: pytest.approx(norm, rel=1e-5, abs=1e-5) for name, norm in golden['gradient_norms'][which].items()
    }


def test_bleu(agent, golden):
    which = agent.opt['contrastive_text']
    texts = agent.batchify(heard(agent, tiny.DIALOGUES)).texts[which]
    for m, row in enumerate(golden['bleu'][which]):
        for n, expected in enumerate(row):
            if m < n:
                assert sentence_bleu(texts[m], texts[n]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize('batchsize', [1, len(tiny.DIALOGUES)])
def test_greedy_replies(agent, examples, batchsize):
    observations = heard(agent, tiny.DIALOGUES)
    for begin in range(0, len(examples), batchsize):
        batch = agent.batchify(observations[begin : begin + batchsize])
        with torch.no_grad():
            found, _ = agent._generate(batch, 1, tiny.NEW_TOKENS)
        for (tokens, *_), expected in zip(found, examples[begin : begin + batchsize], strict=True):
            assert [i for i in tokens.tolist() if i >= 0] == expected['reply']
        for reply, expected in zip(
            agent.batch_act(observations[begin : begin + batchsize]), examples[begin : begin + batchsize], strict=True
        ):
            assert reply['text'] == agent.dict.vec2txt(expected['reply'])
