"""Numbers that the authors' published code gives on a real tiny Llama, and the same numbers from this package.

`authors.json` holds them, so that what needs neither LLM nor texts is checked everywhere. Those are not part of this
project: with SPT_SHARED_DATA, the folder that holds them, everything is checked through the agent.
"""

from __future__ import annotations

import json
import os
import re
from itertools import combinations
from pathlib import Path

import pytest
import torch
from helpers.real_agents import agent_with, computed, heard, metric

from spt_parlai.objective import SptObjective
from spt_parlai.objective.losses import (
    contrastive_loss,
    fusion_nll,
    gold_distribution,
    prompt_nll,
    selection_loss,
    unordered_pairs,
)
from spt_parlai.objective.similarity import sentence_bleu, similar_pairs

FOLDER = os.environ.get('SPT_SHARED_DATA')
needs_folder = pytest.mark.skipif(not FOLDER, reason='SPT_SHARED_DATA, the folder with the golden LLM, is not set')
AUTHORS = json.loads(Path(__file__).with_name('authors.json').read_text(encoding='utf-8'))
TEXTS = ('persona', 'context')
THRESHOLD, PAIRS = 20.0, 6  # four examples
TOTAL = {
    which: sum(map(sum, AUTHORS['nll'])) / 4
    + AUTHORS['contrast'][which]
    + AUTHORS['selection']
    + sum(AUTHORS['fusion']) / 4
    for which in TEXTS
}


def close(actual, expected):
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=torch.float64),
        torch.as_tensor(expected, dtype=torch.float64),
        rtol=1e-5,
        atol=1e-5,
    )


# ---- without the LLM -----------------------------------------------------------------------------------------


def test_gold_and_selection():
    gold = gold_distribution(torch.tensor(AUTHORS['nll']), 1.0)
    close(gold, AUTHORS['gold'])
    close(selection_loss(gold, torch.tensor(AUTHORS['scores']), 1.0).mean(), AUTHORS['selection'])


@pytest.mark.parametrize('which', TEXTS)
def test_contrast_and_total(which):
    similar = torch.tensor([[bleu is not None and bleu > THRESHOLD for bleu in row] for row in AUTHORS['bleu'][which]])
    scores = torch.tensor(AUTHORS['scores'])
    close(contrastive_loss(scores, similar, unordered_pairs(4)).sum() / PAIRS, AUTHORS['contrast'][which])
    without_fusion = SptObjective(lambda_fusion=0.0)(
        -torch.tensor(AUTHORS['nll']), scores, torch.arange(4), similar
    )  # N = B = 4
    close(without_fusion.total, TOTAL[which] - sum(AUTHORS['fusion']) / 4)


# ---- through the agent ---------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def golden():
    return json.loads((Path(FOLDER) / 'golden' / 'golden_stories260K.json').read_text(encoding='utf-8'))


@pytest.fixture(scope='module', params=TEXTS)
def agent(golden, request, tmp_path_factory):
    """Their prompts and their one linear layer, which is both of ours, in a model file."""
    weight, bias = torch.tensor(golden['linear_weight']), torch.tensor(golden['linear_bias'])
    tensors = {'soft_prompts.tokens': torch.tensor(golden['prompts'])}
    for name in ('lin_context', 'lin_prompt'):
        tensors |= {f'retriever.{name}.weight': weight, f'retriever.{name}.bias': bias}
    return agent_with(
        tensors,
        tmp_path_factory.mktemp('authors') / 'model',
        llm=str(Path(FOLDER) / 'models' / golden['llm']),
        num_prompts=golden['K'],
        prompt_length=golden['L'],
        similarity_threshold=THRESHOLD,
        contrastive_text=request.param,
    )


def dialogues(golden):
    """Their contexts taken apart: (persona sentences, utterances, target)."""
    for example, persona in zip(golden['examples'], golden['persona_text'], strict=True):
        history = example['context'].removeprefix(f'given persona: {persona}; context: Q: ').removesuffix(' R:')
        yield re.split(r'(?<=\.) ', persona), re.split(r' [QR]: ', history), example['target']


def their_texts(golden):
    return {'persona': golden['persona_text'], 'context': [e['context'] for e in golden['examples']]}


@needs_folder
def test_the_copy_is_of_these_numbers(golden):
    assert AUTHORS['llm'] == golden['llm']
    assert AUTHORS['scores'] == [e['scores'] for e in golden['examples']]
    for name in ('nll', 'gold', 'selection', 'fusion'):
        assert AUTHORS[name] == golden[name]
    for which in TEXTS:
        assert AUTHORS['bleu'][which] == golden[f'bleu_{which}_hyp_i_ref_j']
        assert AUTHORS['contrast'][which] == golden[f'contrast_{which}']


@needs_folder
def test_tokens(agent, golden):
    """Their target text begins with a space of its own, which this tokenizer, having put one there already, makes a
    token; a label of ours has none. All else is token for token the same."""
    space = agent.dict.tok2ind['▁']
    for observation, example in zip(heard(agent, dialogues(golden)), golden['examples'], strict=True):
        assert observation['full_text'] == example['context']
        assert observation['text_vec'].tolist() == example['context_ids']
        assert [space, *observation['eval_labels_vec'].tolist()] == example['target_ids']


@needs_folder
def test_bleu(golden):
    for which, texts in their_texts(golden).items():
        similar = similar_pairs(texts, THRESHOLD)
        for m, n in combinations(range(4), 2):
            expected = AUTHORS['bleu'][which][m][n]
            assert sentence_bleu(texts[m], texts[n]) == pytest.approx(expected, abs=1e-5)
            assert bool(similar[m, n]) == (expected > THRESHOLD)


@needs_folder
@pytest.mark.parametrize('batchsize', [1, 4])
def test_everything(agent, golden, batchsize):
    """Four messages, with their target's tokens, in one batch of ParlAI's and one by one."""
    which = agent.opt['contrastive_text']
    observations = heard(agent, dialogues(golden), eval_labels_vec=[e['target_ids'] for e in golden['examples']])
    assert agent.batchify(observations).texts == their_texts(golden)
    for begin in range(0, 4, batchsize):
        part = slice(begin, begin + batchsize)
        with torch.no_grad():
            total, prediction = computed(agent, agent.batchify(observations[part]))
        nll = prompt_nll(prediction.log_probs, prediction.example, batchsize)
        close(nll.T, list(zip(*AUTHORS['nll'], strict=True))[part])
        close(prediction.scores, AUTHORS['scores'][part])
        close(gold_distribution(nll, 1.0), AUTHORS['gold'][part])
        close(fusion_nll(prediction.log_probs, prediction.example, batchsize), AUTHORS['fusion'][part])
        if batchsize == 4:
            close(total, TOTAL[which])
    replies = [reply for n in range(0, 4, batchsize) for reply in agent.batch_act(observations[n : n + batchsize])]
    for n, reply in enumerate(replies):
        close(metric(reply, 'nll'), sum(row[n] for row in AUTHORS['nll']))
        close(metric(reply, 'fusion'), AUTHORS['fusion'][n])
        assert reply['selected_prompt'] == max(range(3), key=AUTHORS['scores'][n].__getitem__)
    close(sum(metric(reply, 'selection') for reply in replies) / 4, AUTHORS['selection'])
    if batchsize == 4:
        shares = [reply['metrics']['contrastive'] for reply in replies]
        close(float(sum(shares[1:], shares[0]).value()), AUTHORS['contrast'][which])
