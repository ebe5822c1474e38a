"""Prompt tuning equals SPT with one prompt and without its other losses."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.runs import evaluate, logged, states, train
from transformers import AutoTokenizer

from spt_parlai.errors import UsageError

SPT = {'num_prompts': 1, 'lambda_selection': 0.0, 'lambda_contrastive': 0.0, 'lambda_fusion': 0.0}
RUN = {
    'max_train_steps': 6,
    'batchsize': 2,
    'log_every_n_steps': 1,
    'prompt_length': 3,
    'validation_every_n_steps': 3,
    'prompt_init': 'embedding-scale',
}


@pytest.mark.parametrize('llm', ['opt', 'llama'])
def test_equals_spt_with_one_prompt_and_no_other_loss(tiny_llms, tmp_path, llm):
    """Losses, prompt and evaluation reports are equal, step by step and bit for bit."""
    reports = {}
    for name, agent, more in (('pt', 'PromptTuningAgent', {}), ('spt', 'SptAgent', SPT)):
        reports[name] = train(tmp_path / name, getattr(tiny_llms, llm), agent, **RUN, **more)
    pt, spt = (states(tmp_path / name) for name in ('pt', 'spt'))
    assert len(logged(tmp_path / 'pt')) == 5 and logged(tmp_path / 'pt') == logged(tmp_path / 'spt')
    assert logged(tmp_path / 'pt', 'gnorm') == logged(tmp_path / 'spt', 'gnorm')
    assert pt['model'].keys() == {'soft_prompts.tokens'} and pt['model']['soft_prompts.tokens'].shape == (1, 3, 16)
    assert torch.equal(pt['model']['soft_prompts.tokens'], spt['model']['soft_prompts.tokens'])
    for ours, theirs in zip(reports['pt'], reports['spt'], strict=True):
        assert all(ours[name] == theirs[name] for name in ('ppl', 'loss', 'token_acc', 'nll'))


@pytest.fixture(scope='module')
def trained(tiny_llms, tmp_path_factory):
    folder = tmp_path_factory.mktemp('pt')
    train(folder / 'm', tiny_llms.opt, 'PromptTuningAgent', **RUN)
    return folder / 'm'


def test_reports_nothing_of_a_choice_that_is_none(trained):
    stats = json.loads(Path(f'{trained}.trainstats').read_text())
    for report in (*stats['train_reports'], *stats['valid_reports'], evaluate(trained, num_examples=4)):
        assert 'nll' in report and 'ppl' in report
        assert not [name for name in report if 'prompt_usage' in name or name in ('selection', 'contrastive', 'fusion')]


@pytest.mark.parametrize('init', ['vocab', 'embedding-scale', 'normal'])
def test_a_token_without_an_embedding_that_nothing_gives(tiny_llms, tmp_path, init):
    """A `<pad>` that was added to the tokenizer alone changes neither the prompts nor what they learn."""
    padded = shutil.copytree(tiny_llms.llama, tmp_path / 'padded')
    tokenizer = AutoTokenizer.from_pretrained(padded)
    tokenizer.add_special_tokens({'pad_token': '<pad>'})
    tokenizer.save_pretrained(padded)
    for name, llm in (('with', padded), ('without', tiny_llms.llama)):
        short = {'max_train_steps': 1, 'prompt_length': 3, 'prompt_init': init}
        train(tmp_path / name, llm, 'PromptTuningAgent', **short)
    prompts = [states(tmp_path / name)['model']['soft_prompts.tokens'] for name in ('with', 'without')]
    assert torch.equal(*prompts)
    known = len(tokenizer) - 1
    details = {'num_examples': 1, 'datatype': 'valid', 'verbose': True}
    assert evaluate(tmp_path / 'with', **details, verbose_topk=known)['exs'] == 4
    with pytest.raises(UsageError, match=f'--verbose-topk {known + 1}: the LLM has {known} tokens; give at most'):
        evaluate(tmp_path / 'with', **details, verbose_topk=known + 1)
