"""`--llm-compile true` in ParlAI's own scripts."""

from functools import partial

import pytest
import torch
from helpers.runs import evaluate, logged, train


@pytest.mark.parametrize(
    'agent',
    [{}, {'model': 'spt_parlai.agents:LoraAgent', 'num_prompts': None, 'prompt_length': None}],
    ids=['spt', 'lora'],
)
def test_trains_as_without_it_and_in_training_alone(tiny_llms, tmp_path, monkeypatch, agent):
    settings = {'max_train_steps': 4, 'log_every_n_steps': 1, 'batchsize': 2, **agent}
    train(tmp_path / 'plain', tiny_llms.opt, **settings)
    made = []
    compiled = partial(torch.compile, backend='aot_eager')
    monkeypatch.setattr(torch, 'compile', lambda *args, **kwargs: made.append(args) or compiled(*args, **kwargs))
    train(tmp_path / 'compiled', tiny_llms.opt, llm_compile=True, **settings)
    assert made
    plain, found = logged(tmp_path / 'plain'), logged(tmp_path / 'compiled')
    assert len(plain) >= 3 and list(found) == list(plain)
    assert found == pytest.approx(plain, rel=1e-5)
    made.clear()
    assert evaluate(tmp_path / 'compiled', num_examples=4)['exs'] == 4 and not made
