"""Runs of the trainable baselines: interrupted and continued, saved, evaluated, and loaded by the right agent only."""

import os
import signal

import pytest
import torch
from helpers.runs import agent_of, evaluate, logged, states, train
from parlai.core.agents import create_agent_from_model_file

from spt_parlai.agents.base import LLMAgent
from spt_parlai.checkpoints.prompts import read_prompts
from spt_parlai.errors import UsageError
from spt_parlai.model import loading

RUNS = {
    'PromptTuningAgent': {'prompt_length': 3, 'learningrate': 0.1},
    'LoraAgent': {'match_spt': '1,1', 'lora_dropout': 0.3, 'learningrate': 0.01},
    'FullFineTuningAgent': {'learningrate': 0.001},
}
STEPS = {
    'max_train_steps': 6,
    'batchsize': 2,
    'log_every_n_steps': 1,
}  # no validation: the model file is that of the last step


@pytest.fixture(scope='module', params=RUNS)
def trained(request, tiny_llms, tmp_path_factory):
    """(agent, model file, validation report) of an uninterrupted run."""
    folder = tmp_path_factory.mktemp(request.param)
    valid, _ = train(folder / 'm', tiny_llms.opt, request.param, **STEPS, **RUNS[request.param])
    return request.param, folder / 'm', valid


def test_an_interrupted_run_continues_exactly(trained, tiny_llms, tmp_path, monkeypatch):
    agent, whole, _ = trained
    train_step, seen = LLMAgent.train_step, []

    def interrupted(self, batch):
        if not self._replaying:
            seen.append(batch)
            if len(seen) == 4:
                os.kill(os.getpid(), signal.SIGINT)
        return train_step(self, batch)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match=str(128 + signal.SIGINT)):
        patch.setattr(LLMAgent, 'train_step', interrupted)
        train(tmp_path / 'm', tiny_llms.opt, agent, **STEPS, **RUNS[agent])
    stopped = states(tmp_path / 'm.checkpoint')['model']
    train(tmp_path / 'm', tiny_llms.opt, agent, **STEPS, **RUNS[agent])
    curve, expected = logged(tmp_path / 'm'), logged(whole)
    assert expected.keys() - curve.keys() == {4} and curve == {
        step: expected[step] for step in (1, 2, 3, 5)
    }  # 4: not yet logged
    final = states(tmp_path / 'm')['model']
    torch.testing.assert_close(final, states(whole)['model'], rtol=0, atol=0)
    assert sum(not torch.equal(final[name], stopped[name]) for name in final) >= len(final) - 1


def test_a_model_file_holds_what_trains(trained, tiny_llms):
    agent, model_file, _ = trained
    held, spt = states(model_file)['model'], states(model_file)['spt']
    assert spt['agent'] == agent and (spt['num_prompts'], spt['prompt_length']) == (
        1,
        3 if agent == 'PromptTuningAgent' else 0,
    )
    if agent == 'PromptTuningAgent':
        assert {name: list(t.shape) for name, t in held.items()} == {'soft_prompts.tokens': [1, 3, 16]}
        assert torch.equal(read_prompts(model_file), held['soft_prompts.tokens'])
    elif agent == 'LoraAgent':
        shapes = [[4, 16], [16, 4]] * 4  # A and B of rank 4, of queries and values, of two layers
        assert [list(t.shape) for t in held.values()] == shapes and all('.lora_' in name for name in held)
    else:
        from transformers import AutoModelForCausalLM

        lm = AutoModelForCausalLM.from_pretrained(tiny_llms.opt)
        assert {name: t.shape for name, t in held.items()} == {
            f'tuned.{name}': p.shape for name, p in lm.named_parameters()
        }


def test_evaluates_and_talks_from_the_model_file_alone(trained):
    agent, model_file, valid = trained
    assert evaluate(model_file, num_examples=8, batchsize=2, skip_generation=True)['ppl'] == pytest.approx(
        float(valid['ppl']), rel=1e-5
    )
    loaded = create_agent_from_model_file(str(model_file), {'interactive_mode': True, 'persona': 'i ski.'})
    assert type(loaded).__name__ == agent
    loaded.observe({'text': 'hi', 'label_candidates': ['hello', 'bye'], 'episode_done': False})
    reply = loaded.act()
    assert isinstance(reply['text'], str) and 'prompt_scores' not in reply
    given = create_agent_from_model_file(str(model_file), {'persona': 'i ski.'})  # no script's chat, but code
    assert given.history.dialogue.persona == ['i ski.']


def test_is_taken_for_what_it_is(trained, tiny_llms):
    agent, model_file, _ = trained
    with pytest.raises(
        UsageError, match=f'm is of {agent}, not of SptAgent: use -m spt_parlai.agents:{agent}, or another model file.$'
    ):
        agent_of(tiny_llms.opt, 'SptAgent', model_file=model_file)
    with pytest.raises(UsageError, match='was trained around --llm .*/opt, which differs in shape'):
        agent_of(tiny_llms.gpt2, agent, model_file=model_file, **RUNS[agent])
    wrong = {'PromptTuningAgent': {'prompt_length': 4}, 'LoraAgent': {'lora_rank': 3}, 'FullFineTuningAgent': None}[
        agent
    ]
    if wrong:
        ((name, value),) = wrong.items()
        flag = '--' + name.replace('_', '-')
        with pytest.raises(UsageError, match=f'm holds {flag} {4 if agent == "LoraAgent" else 3}, not {value}: '):
            agent_of(tiny_llms.opt, agent, model_file=model_file, **{**RUNS[agent], 'match_spt': None, **wrong})


@pytest.mark.parametrize('options', [{'lora_rank': 5}, {'lora_rank': 4, 'lora_alpha': 9.0}], ids=str)
def test_lora_of_another_size_is_refused_before_the_llm_loads(tiny_llms, tmp_path, options, monkeypatch):
    agent_of(tiny_llms.opt, 'LoraAgent', model_file=tmp_path / 'm', lora_rank=4).save()
    monkeypatch.setattr(loading, 'load_causal_lm', lambda *_, **__: pytest.fail('weights are read'))
    with pytest.raises(UsageError, match='m holds --lora-'):
        agent_of(tiny_llms.opt, 'LoraAgent', model_file=tmp_path / 'm', **options)


@pytest.mark.parametrize(
    'options, named',
    [
        ({'lora_alpha': 9.0}, '--lora-alpha 8, not 9'),
        ({'lora_targets': 'k_proj,v_proj'}, '--lora-targets q_proj,v_proj, not k_proj,v_proj'),
    ],
)
def test_lora_of_other_settings_is_refused(tiny_llms, tmp_path, options, named):
    agent_of(tiny_llms.opt, 'LoraAgent', model_file=tmp_path / 'm', lora_rank=4).save()
    with pytest.raises(UsageError, match=named):
        agent_of(tiny_llms.opt, 'LoraAgent', model_file=tmp_path / 'm', lora_rank=4, **options)
    assert agent_of(
        tiny_llms.opt, 'LoraAgent', model_file=tmp_path / 'm', lora_rank=4, lora_dropout=0.5
    )  # changes no function


def test_a_file_without_soft_prompts_says_so(tiny_llms, tmp_path):
    agent_of(tiny_llms.opt, 'LoraAgent', model_file=tmp_path / 'm').save()
    with pytest.raises(UsageError, match='m is of LoraAgent and holds no soft prompts'):
        read_prompts(tmp_path / 'm')
