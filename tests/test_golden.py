"""Numbers that the authors' published code gives on a real tiny Llama, and the same numbers from this package.

Needs files that are not part of this project: SPT_SHARED_DATA names the folder that holds them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from spt_parlai.model.loading import load_frozen_lm
from spt_parlai.model.retriever import Retriever
from spt_parlai.model.soft_prompts import SoftPromptGroup
from spt_parlai.model.spt_model import SptModel
from spt_parlai.objective import SptObjective
from spt_parlai.objective.losses import gold_distribution
from spt_parlai.objective.similarity import sentence_bleu, similar_pairs

FOLDER = os.environ.get('SPT_SHARED_DATA')
pytestmark = pytest.mark.skipif(not FOLDER, reason='SPT_SHARED_DATA, the folder with the golden numbers, is not set')
CLOSE = dict(rtol=1e-5, atol=1e-5)
THRESHOLD = 20.0


@pytest.fixture(scope='module')
def golden():
    return json.loads((Path(FOLDER) / 'golden' / 'golden_stories260K.json').read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def prediction(golden):
    llm = load_frozen_lm(str(Path(FOLDER) / 'models' / golden['llm']))
    assert llm.hidden_size == golden['D']
    prompts = SoftPromptGroup(torch.tensor(golden['prompts']))
    assert (prompts.num_prompts, prompts.length) == (golden['K'], golden['L'])
    retriever = Retriever(llm.hidden_size)
    for linear in (retriever.lin_context, retriever.lin_prompt):  # the authors share one layer
        linear.load_state_dict({
            'weight': torch.tensor(golden['linear_weight']), 'bias': torch.tensor(golden['linear_bias'])
        })
    model = SptModel(llm, prompts, retriever, padding_idx=-1, start_idx=-2, end_idx=2)
    contexts, targets = (
        torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(e[key]) for e in golden['examples']], batch_first=True, padding_value=-1
        ) for key in ('context_ids', 'target_ids')
    )
    with torch.no_grad():
        return model(contexts, targets)


@pytest.fixture(scope='module')
def texts(golden):
    return {'persona': golden['persona_text'], 'context': [e['context'] for e in golden['examples']]}


def losses(prediction, texts):
    return SptObjective()(prediction.log_probs, prediction.scores, prediction.example, similar_pairs(texts, THRESHOLD))


def close(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), **CLOSE)


def test_scores(golden, prediction):
    close(prediction.scores, [e['scores'] for e in golden['examples']])


def test_losses(golden, prediction, texts):
    result = losses(prediction, texts['persona'])
    close(result.nll, golden['nll'])
    close(gold_distribution(result.nll, 1.0), golden['gold'])
    close(result.selection.mean(), golden['selection'])
    close(result.fusion, golden['fusion'])


@pytest.mark.parametrize('text', ['persona', 'context'])
def test_contrast(golden, prediction, texts, text):
    contrastive = losses(prediction, texts[text]).contrastive
    close(contrastive.sum() / 6, golden[f'contrast_{text}'])  # four examples make six pairs


@pytest.mark.parametrize('text', ['persona', 'context'])
def test_sentence_bleu(golden, texts, text):
    for m, row in enumerate(golden[f'bleu_{text}_hyp_i_ref_j']):
        for n, expected in enumerate(row):
            assert (expected is not None) == (m < n)
            if m < n:
                assert sentence_bleu(texts[text][m], texts[text][n]) == pytest.approx(expected, abs=1e-5)


def test_total(golden, prediction, texts):
    expected = torch.tensor(golden['nll']).sum(0).mean() + golden['contrast_persona'] + golden['selection']
    expected = expected + torch.tensor(golden['fusion']).mean()
    torch.testing.assert_close(losses(prediction, texts['persona']).total, expected, **CLOSE)
