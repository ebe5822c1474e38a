"""`--rank-candidates` ranks label candidates by their NLL per token under the selected prompt."""

import os
import shutil

import pytest
import torch
from helpers.runs import evaluate, train, turns

from spt_parlai.model.loading import load_llm


@pytest.fixture(scope='module')
def model_file(tiny_llms, tmp_path_factory):
    path = tmp_path_factory.mktemp('candidates') / 'm'
    train(path, tiny_llms.opt, max_train_steps=6, learningrate=0.1)
    return path


def naive_nll(llm, prompt, context, candidate):
    """Mean NLL of one candidate's tokens: one row, no padding, no cache."""
    words = llm.embed(torch.tensor([*context, *candidate[:-1]]))
    row = torch.cat([prompt, words])[None]
    logits = llm.lm(inputs_embeds=row).logits[0, -len(candidate) :]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(candidate)).item()


@pytest.mark.parametrize('batchsize', [1, 5])
def test_equals_one_candidate_at_a_time(model_file, tiny_llms, tmp_path, monkeypatch, batchsize):
    from spt_parlai.agents import SptAgent

    checked = []
    rank = SptAgent.rank_eval_label_candidates

    def compare(self, batch, size):
        ranked, losses = rank(self, batch, size)
        for n in range(size):
            context = [i for i in batch.text_vec[n].tolist() if i >= 0]
            prompt = self.model.soft_prompts.tokens[batch['selection'].selected[n]]
            naive = {
                text: naive_nll(llm, prompt, context, vec.tolist())
                for text, vec in zip(batch.candidates[n], batch.candidate_vecs[n], strict=True)
            }
            assert len(naive) == 10
            assert ranked[n] == sorted(naive, key=naive.get)
            assert losses[n] == pytest.approx(sorted(naive.values()), rel=1e-4)
            checked.append(n)
        return ranked, losses

    llm = load_llm(tiny_llms.opt)
    monkeypatch.setattr(SptAgent, 'rank_eval_label_candidates', compare)
    report = evaluate(
        model_file,
        task='integration_tests:candidate',
        rank_candidates=True,
        num_examples=10,
        batchsize=batchsize,
        world_logs=tmp_path / 'log',
        skip_generation=True,
        metrics='all',
    )
    assert len(checked) == 10
    hits = [pair[1]['text_candidates'].index(pair[0]['eval_labels'][0]) for pair in turns(tmp_path / 'log')]
    for k in (1, 5, 10, 100):
        assert report[f'hits@{k}'] == pytest.approx(sum(h < k for h in hits) / 10)


def test_a_task_without_candidates_has_no_ranks(model_file):
    report = evaluate(model_file, rank_candidates=True, num_examples=8, skip_generation=True)
    assert report['exs'] == 8 and 'ppl' in report and 'hits@1' not in report


@pytest.mark.skipif(not os.environ.get('SPT_SHARED_DATA'), reason='SPT_SHARED_DATA names no folder of data')
def test_convai2_with_its_twenty_candidates(model_file, tmp_path):
    from pathlib import Path

    from spt_parlai.tasks.convai2_files import install_convai2

    source = next(Path(os.environ['SPT_SHARED_DATA']).rglob('valid_self_original.txt')).parent
    install_convai2(source, tmp_path / 'data', False)
    report = evaluate(
        model_file,
        task='convai2:self',
        datapath=tmp_path / 'data',
        rank_candidates=True,
        num_examples=20,
        batchsize=10,
        skip_generation=True,
    )
    assert 0 <= report['hits@1'] <= report['hits@5'] <= report['hits@10'] <= report['hits@100'] == 1
    shutil.rmtree(tmp_path / 'data')
