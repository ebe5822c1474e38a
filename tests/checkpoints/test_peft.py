"""Soft prompts become PEFT adapters with the same logits; neither the LLM nor the network is needed for that."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from helpers.families import FAMILIES, build, draw, tiny_lm
from helpers.runs import SMALL, train
from peft import PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from spt_parlai.checkpoints.files import describe, load_states, save_states
from spt_parlai.checkpoints.peft import CONFIG, export_peft, read_adapter
from spt_parlai.cli import app
from spt_parlai.errors import UsageError

CLOSE = dict(rtol=1e-5, atol=1e-5)
FILES = ['README.md', 'adapter_config.json', 'adapter_model.safetensors']
SHARED = os.environ.get('SPT_SHARED_DATA')
HUB_ID = 'nobody/has-this-model'


@pytest.fixture
def checkpoint(tmp_path):
    """checkpoint(family, **description) → (model file, its PromptedLM): K = 3, L = 2; the LLM is not on disk."""

    def make(family, **description):
        model, _ = build(tiny_lm(family))
        states = {'model': model.state_dict(), 'spt': {**describe(model.llm, model, HUB_ID), **description}}
        save_states(states, tmp_path / 'model')
        return tmp_path / 'model', model

    return make


@torch.no_grad()
def our_logits(model, prompt, ids):
    """Logits [T, V] of the tokens after [sp ; ids]."""
    words = model.llm.embed(torch.tensor(ids))
    rows = torch.cat([model.soft_prompts.tokens[prompt], words])[None]
    return model.llm.logits_at(rows, torch.arange(rows.shape[1]))[-len(ids) :]


# ---- the same model in both ------------------------------------------------------------------------------


@pytest.mark.parametrize('family', [family for family in FAMILIES if family != 'opt-350m'])
def test_same_logits(checkpoint, tmp_path, family):
    model_file, model = checkpoint(family)
    (folder,) = export_peft(model_file, tmp_path / 'adapter', prompt=1)
    theirs = PeftModel.from_pretrained(tiny_lm(family).eval(), folder)
    for ids in draw([9, 3]):
        with torch.no_grad():
            logits = theirs(input_ids=torch.tensor([ids])).logits[0, -len(ids) :]
        torch.testing.assert_close(logits, our_logits(model, 1, ids), **CLOSE)
        assert not torch.allclose(logits, our_logits(model, 0, ids), atol=1e-3)


@pytest.mark.parametrize('family', ['opt', 'llama'])
def test_same_logits_in_a_padded_batch_and_the_same_reply(checkpoint, tmp_path, family):
    model_file, model = checkpoint(family)
    (folder,) = export_peft(model_file, tmp_path / 'adapter', prompt=2)
    theirs = PeftModel.from_pretrained(tiny_lm(family).eval(), folder)
    rows = draw([8, 5])
    ids = torch.tensor([rows[0], rows[1] + [0] * 3])
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    with torch.no_grad():
        logits = theirs(input_ids=ids, attention_mask=mask).logits[:, 2:]
        reply = theirs.generate(
            input_ids=ids[:1],
            attention_mask=mask[:1],
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            eos_token_id=None,
        )[0, 8:].tolist()
    for n, row in enumerate(rows):
        torch.testing.assert_close(logits[n, : len(row)], our_logits(model, 2, row), **CLOSE)
    said = list(rows[0])
    for _ in reply:
        said.append(int(our_logits(model, 2, said)[-1].argmax()))
    assert reply == said[8:]


@pytest.mark.skipif(not SHARED, reason='SPT_SHARED_DATA, the folder with real LLMs, is not set')
@pytest.mark.parametrize('name', ['stories260K', 'chat-opt-7m'])
def test_same_logits_around_a_real_llm(tmp_path, name):
    from parlai.core.agents import create_agent_from_model_file

    llm = str(Path(SHARED) / 'models' / name)
    train(tmp_path / 'model', llm, max_train_steps=1)
    agent = create_agent_from_model_file(str(tmp_path / 'model'))
    ids = [
        *agent.dict.txt2vec('given persona: i like tea.; context: Q: hello ! R:'),
        *agent.dict.txt2vec('hi , how are you ?'),
    ]
    for i, folder in enumerate(export_peft(tmp_path / 'model', tmp_path / 'adapters')):
        base = AutoModelForCausalLM.from_pretrained(
            json.loads((folder / CONFIG).read_text())['base_model_name_or_path']
        )
        with torch.no_grad():
            logits = PeftModel.from_pretrained(base, folder)(input_ids=torch.tensor([ids])).logits[0, -len(ids) :]
        torch.testing.assert_close(logits, our_logits(agent.bare_model, i, ids), **CLOSE)


def test_an_input_projection_is_refused(checkpoint, tmp_path):
    model_file, _ = checkpoint('opt-350m')
    with pytest.raises(
        UsageError, match=f'--llm {HUB_ID} projects word embeddings 16 wide to the prompts. 32'
    ) as error:
        export_peft(model_file, tmp_path / 'adapter')
    assert '\n' not in str(error.value) and not (tmp_path / 'adapter').exists()


# ---- what is written -------------------------------------------------------------------------------------


def test_command_writes_every_prompt_of_a_trained_model(tmp_path, tiny_llms):
    train(tmp_path / 'model', tiny_llms.opt, max_train_steps=1)
    done = CliRunner().invoke(app, ['export-peft', str(tmp_path / 'model'), '--out', str(tmp_path / 'all')])
    assert done.exit_code == 0, done.output
    assert sorted(os.listdir(tmp_path / 'all')) == [f'prompt_{i}' for i in range(SMALL['num_prompts'])]
    tokens = load_states(tmp_path / 'model')['model']['soft_prompts.tokens']
    for i in range(SMALL['num_prompts']):
        folder = tmp_path / 'all' / f'prompt_{i}'
        assert sorted(os.listdir(folder)) == FILES
        config = PromptTuningConfig.from_pretrained(folder)
        assert (config.base_model_name_or_path, config.task_type, config.revision) == (tiny_llms.opt, 'CAUSAL_LM', None)
        assert (config.num_virtual_tokens, config.token_dim, config.num_layers, config.num_attention_heads) == (
            2,
            16,
            2,
            2,
        )
        assert torch.equal(read_adapter(folder), tokens[i])


def test_the_carried_llm_is_named_by_its_folder(checkpoint, tmp_path):
    model_file, _ = checkpoint('opt', llm='demo', llm_revision='abc')
    (folder,) = export_peft(model_file, tmp_path / 'adapter', prompt=0)
    config = PromptTuningConfig.from_pretrained(folder)
    assert os.path.isfile(os.path.join(config.base_model_name_or_path, 'config.json')) and config.revision == 'abc'


def test_an_adapter_is_replaced_only_by_force(checkpoint, tmp_path):
    model_file, model = checkpoint('opt')
    out = tmp_path / 'adapter'
    export_peft(model_file, out, prompt=0)
    with pytest.raises(UsageError, match='holds an adapter; give another folder, or --force'):
        export_peft(model_file, out, prompt=1)
    assert torch.equal(read_adapter(out), model.soft_prompts.tokens[0])
    export_peft(model_file, out, prompt=1, force=True)
    assert torch.equal(read_adapter(out), model.soft_prompts.tokens[1]) and sorted(os.listdir(out)) == FILES


@pytest.mark.parametrize('prompt', [3, -1])
def test_a_prompt_that_is_not_there_is_refused(checkpoint, tmp_path, prompt):
    with pytest.raises(UsageError, match=f'--prompt {prompt}: .* holds prompts 0 to 2'):
        export_peft(checkpoint('opt')[0], tmp_path / 'adapter', prompt=prompt)
    assert not (tmp_path / 'adapter').exists()


def test_a_folder_that_cannot_be_made_is_refused(checkpoint, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UsageError, match='cannot be written'):
        export_peft(checkpoint('opt')[0], tmp_path / 'file' / 'adapter', prompt=0)


def test_without_peft_the_extra_is_named(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'peft', None)
    with pytest.raises(UsageError, match=r"pip install 'spt_parlai\[peft\]'"):
        export_peft(checkpoint('opt')[0], tmp_path / 'adapter')


# ---- no network ------------------------------------------------------------------------------------------

_attempts = None  # a list while connections are forbidden


def _forbid(event, args):
    if _attempts is not None and event in (
        'socket.connect',
        'socket.getaddrinfo',
        'socket.gethostbyname',
        'socket.sendto',
    ):
        _attempts.append((event, args))
        raise OSError(f'no network here: {event}')


@pytest.fixture
def attempts(monkeypatch):
    """Every use of the network raises an error and is listed here, while the hub library believes itself online."""
    global _attempts
    from huggingface_hub import constants

    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.delenv('HF_HUB_OFFLINE', raising=False)
    if not getattr(test_saving_never_touches_the_network, 'hooked', False):
        sys.addaudithook(_forbid)
        test_saving_never_touches_the_network.hooked = True
    _attempts = []
    yield _attempts
    _attempts = None


def test_saving_never_touches_the_network(checkpoint, tmp_path, attempts):
    model_file, _ = checkpoint('opt')
    assert len(export_peft(model_file, tmp_path / 'ours')) == 3
    assert attempts == []


def test_and_that_is_noticed_if_it_does(tmp_path, attempts):
    """peft's own function to save an adapter asks the hub for the configuration of the base model."""
    theirs = get_peft_model(tiny_lm('opt'), PromptTuningConfig(task_type='CAUSAL_LM', num_virtual_tokens=2))
    theirs.peft_config['default'].base_model_name_or_path = HUB_ID
    theirs.save_pretrained(tmp_path / 'theirs')
    assert attempts
    with pytest.raises(OSError, match='no network here'):
        socket.create_connection(('127.0.0.1', 9))
