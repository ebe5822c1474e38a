"""A model file trained around a GGUF file opens where the file has another path, and with another cache."""

import json
import re

import pytest
from conftest import byte_level_tokenizer
from helpers.runs import evaluate, states, train
from helpers.tiny_gguf import tiny_llama, write_gguf
from parlai.utils import logging
from typer.testing import CliRunner

from spt_parlai.checkpoints.peft import export_peft
from spt_parlai.cli import app
from spt_parlai.errors import UsageError


def test_two_machines(tmp_path, monkeypatch):
    def of(report):
        return {name: value for name, value in report.items() if name in ('ppl', 'token_acc', 'unigram_f1', 'spt_loss')}

    said = []
    monkeypatch.setattr(logging, 'warning', said.append)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'here'))
    tokenizer = byte_level_tokenizer()
    path = write_gguf(tmp_path / 'tiny.gguf', tiny_llama(tokenizer), tokenizer, 'Q8_0')
    model_file = tmp_path / 'model'
    train(model_file, path, max_train_steps=2)
    before = of(evaluate(model_file, num_examples=8))
    stored = states(model_file)['spt']['llm']
    assert stored.startswith(f'{path}#sha256:') and json.loads((tmp_path / 'model.opt').read_text())['llm'] == stored
    path.rename(tmp_path / 'copy.gguf')
    assert of(evaluate(model_file, num_examples=8)) == before  # from the cache

    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'there'))
    with pytest.raises(UsageError, match='--llm .*not on this machine; give the path of your copy of tiny.gguf'):
        evaluate(model_file, num_examples=8)
    assert of(evaluate(model_file, num_examples=8, llm=tmp_path / 'copy.gguf')) == before
    assert of(evaluate(model_file, num_examples=8)) == before  # found by its checksum
    assert 'now runs around' not in str(said)

    other = write_gguf(tmp_path / 'other.gguf', tiny_llama(tokenizer), tokenizer, 'Q4_1')
    assert of(evaluate(model_file, num_examples=8, llm=other)) != before
    assert f'was trained around --llm {stored} and now runs around --llm {other}#sha256:' in str(said)

    (adapter,) = export_peft(model_file, tmp_path / 'adapter', prompt=0)
    assert json.loads((adapter / 'adapter_config.json').read_text())['base_model_name_or_path'] == stored


def test_the_list_of_names(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    shown = CliRunner().invoke(app, ['llms'], env={'COLUMNS': '200'}).output
    for words in ('demo', 'smollm2 .*HuggingFaceTB/SmolLM2-135M-Instruct .*98 MB .*Apache-2.0', 'gemma3-270m .*Gemma'):
        assert re.search(words, shown), shown
