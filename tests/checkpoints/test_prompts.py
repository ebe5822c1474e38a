"""`read_prompts` reads every kind of file that contains soft prompts, and refuses others in one sentence."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from helpers.authors_tensors import PROMPT, D, K, L
from helpers.runs import train
from peft import PromptTuningConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from spt_parlai.checkpoints.files import load_states
from spt_parlai.checkpoints.peft import export_peft
from spt_parlai.checkpoints.prompts import read_prompts
from spt_parlai.errors import UsageError


@pytest.fixture(scope='module')
def trained(tmp_path_factory, tiny_llms):
    folder = tmp_path_factory.mktemp('trained')
    train(folder / 'model', tiny_llms.opt, max_train_steps=1)
    return folder / 'model'


@pytest.fixture
def adapters(tmp_path, trained):
    export_peft(trained, tmp_path / 'adapters')
    return tmp_path / 'adapters'


def refusal(path):
    with pytest.raises(UsageError) as error:
        read_prompts(path)
    assert '\n' not in str(error.value) and str(error.value).endswith('.') and str(path) in str(error.value)
    return str(error.value)


def test_a_checkpoint_of_ours(trained):
    prompts = read_prompts(str(trained))
    assert prompts.shape == (K, L, D) and prompts.dtype == torch.float32
    assert torch.equal(prompts, load_states(trained)['model']['soft_prompts.tokens'])


def test_a_checkpoint_of_the_authors(tmp_path, save_deepspeed, tensors):
    expected = torch.stack([tensors[PROMPT.format(i)] for i in range(K)])
    del tensors['prompt_normalizer.bias']  # the retriever is not needed
    save_deepspeed(tmp_path / 'theirs', tensors)
    save_file(tensors, tmp_path / 'theirs.safetensors')
    for path in (
        tmp_path / 'theirs',
        tmp_path / 'theirs' / 'best' / 'mp_rank_00_model_states.pt',
        tmp_path / 'theirs.safetensors',
    ):
        assert torch.equal(read_prompts(path), expected)


def test_what_export_wrote_comes_back(trained, adapters):
    assert torch.equal(read_prompts(adapters), read_prompts(trained))
    assert torch.equal(read_prompts(adapters / 'prompt_2'), read_prompts(trained)[2:])


@pytest.mark.parametrize('safe', [True, False])
def test_what_peft_wrote(tmp_path, tiny_llms, safe):
    theirs = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_llms.opt),
        PromptTuningConfig(task_type='CAUSAL_LM', num_virtual_tokens=5),
    )
    theirs.save_pretrained(tmp_path)
    if not safe:  # as peft wrote it before safetensors
        (tmp_path / 'adapter_model.safetensors').unlink()
        torch.save(
            {'prompt_embeddings': theirs.prompt_encoder.default.embedding.weight.data}, tmp_path / 'adapter_model.bin'
        )
    assert torch.equal(read_prompts(tmp_path)[0], theirs.prompt_encoder.default.embedding.weight)


def test_ten_adapters_keep_their_order(tmp_path, adapters):
    for i in range(3, 11):
        shutil.copytree(adapters / 'prompt_0', adapters / f'prompt_{i}')
        save_file(
            {'prompt_embeddings': torch.full((L, D), float(i))}, adapters / f'prompt_{i}' / 'adapter_model.safetensors'
        )
    assert read_prompts(adapters)[3:, 0, 0].tolist() == list(range(3, 11))


def test_damaged_and_foreign_adapters_are_refused(tmp_path, adapters):
    folder = adapters / 'prompt_1'
    config, weights = folder / 'adapter_config.json', folder / 'adapter_model.safetensors'
    save_file({'prompt_embeddings': torch.ones(L + 1, D)}, weights)
    assert f'prompt of shape [{L + 1}, {D}]' in refusal(adapters)
    for tensor in (torch.ones(D), torch.full((L, D), float('inf')), torch.ones(0, D)):
        save_file({'prompt_embeddings': tensor}, weights)
        assert 'holds no tensor prompt_embeddings' in refusal(folder)
    weights.unlink()
    assert 'holds no adapter_model.safetensors' in refusal(folder)
    config.write_text(json.dumps({'peft_type': 'LORA'}))
    assert "of type 'LORA'" in refusal(folder)
    for content in ('{', '[]', '{}', '3'):
        config.write_text(content)
        assert 'is damaged or no configuration' in refusal(folder)


def test_anything_else_is_refused(tmp_path, trained):
    assert 'no such file or folder' in refusal(tmp_path / 'nothing')
    assert 'holds no mp_rank_00_model_states.pt' in refusal(tmp_path)
    torch.save({'other': torch.ones(2)}, tmp_path / 'stock')
    assert 'holds no soft prompts' in refusal(tmp_path / 'stock')
    (tmp_path / 'bytes').write_bytes(b'\x80\x02garbage')
    assert 'is damaged' in refusal(tmp_path / 'bytes')
    states = load_states(trained)
    torch.save({**states, 'spt': {**states['spt'], 'format': 9}}, tmp_path / 'newer')
    assert 'checkpoint format 9' in refusal(tmp_path / 'newer')
    torch.save({**states, 'model': {}}, tmp_path / 'empty')
    assert 'holds no soft prompts [K, L, D]' in refusal(tmp_path / 'empty')
