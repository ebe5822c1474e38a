"""A GGUF file becomes a model folder with the same weights and the same tokenizer."""

import json
import math
import os
import shutil
import tempfile
from types import SimpleNamespace

import pytest
import torch
from conftest import CORPUS
from helpers.tiny_gguf import quantized_and_back, tiny_llama, write_gguf
from torch.testing._internal.distributed.fake_pg import FakeStore

from spt_parlai import hub
from spt_parlai.errors import UsageError
from spt_parlai.gguf_files import cache as cache_module

IDS = torch.tensor([[65, 80, 12, 200, 90, 301, 77]])


def loaded(path):
    return hub.load_causal_lm(str(path), dtype=torch.float32).eval()


@torch.no_grad()
def logits(lm):
    return lm(IDS).logits


@pytest.mark.parametrize('quantization', ['F32', 'F16', 'Q8_0', 'Q4_1'])
def test_same_logits(tmp_path, llama, tokenizer, quantization):
    path = write_gguf(tmp_path / 'tiny.gguf', llama, tokenizer, quantization)
    expected = tiny_llama(tokenizer)
    expected.load_state_dict(quantized_and_back(llama, quantization))
    torch.testing.assert_close(logits(loaded(path)), logits(expected), rtol=2e-3, atol=2e-3)
    if quantization == 'F32':
        torch.testing.assert_close(logits(loaded(path)), logits(llama), rtol=1e-6, atol=1e-6)


def test_stored_dtype(tmp_path, llama, tokenizer):
    """float16 keeps more of a quantized weight; a GPU computes in bfloat16, in which nothing overflows."""
    path = write_gguf(tmp_path / 'tiny.gguf', llama, tokenizer, 'Q8_0')
    from safetensors.torch import load_file

    assert {t.dtype for t in load_file(f'{hub.resolve(str(path))}/model.safetensors').values()} == {torch.float16}
    assert hub.load_causal_lm(str(path), dtype='auto').dtype == torch.bfloat16


def test_same_tokenizer(tmp_path, llama, tokenizer):
    read = hub.load_tokenizer(str(write_gguf(tmp_path / 'tiny.gguf', llama, tokenizer)))
    for text in (*CORPUS, "it's 1990  years\nold</s>", 'é 日本 🙂'):
        assert read.encode(text) == tokenizer.encode(text)
        assert read.decode(read.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert (read.bos_token_id, read.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert read.get_vocab() == tokenizer.get_vocab()


def test_digits_are_split_for_families_that_do_so(tmp_path, llama, tokenizer):
    read = hub.load_tokenizer(str(write_gguf(tmp_path / 'tiny.gguf', llama, tokenizer, pre='smollm')))
    pieces = [piece for piece, _ in read.backend_tokenizer.pre_tokenizer.pre_tokenize_str('in  1990')]
    assert pieces == ['in', 'ĠĠ', '1', '9', '9', '0']


def test_rotary_embedding_of_llama_3(tmp_path, tokenizer):
    """Its divisors are written as llama.cpp computes them, with this formula."""
    scaling = {'low_freq_factor': 1.0, 'high_freq_factor': 4.0, 'original_max_position_embeddings': 8192}
    rotation = {'rope_theta': 5e5, 'rope_type': 'llama3', 'factor': 32.0, **scaling}
    llama, divisors = tiny_llama(tokenizer, rope_parameters=rotation), []
    for i in range(0, 8, 2):
        wavelength = 2 * math.pi * 5e5 ** (i / 8)
        smooth = (8192 / wavelength - 1) / (4 - 1)
        divisors.append(1 / ((1 - smooth) / 32 + smooth) if 2048 < wavelength < 8192 else 1 + 31 * (wavelength >= 8192))
    assert 1 < divisors[2] < 32
    path = write_gguf(tmp_path / 'tiny.gguf', llama, tokenizer, extra={'rope_freqs.weight': divisors})
    ids = torch.arange(3, 303)[None]
    with torch.no_grad():
        read, given, plain = (lm(ids).logits for lm in (loaded(path), llama, tiny_llama(tokenizer)))
    torch.testing.assert_close(read, given, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain, given, atol=1e-3)


@pytest.mark.parametrize(
    'wrong, named',
    [
        (dict(pre='chatglm-bpe'), 'splits text in a way that transformers does not know .chatglm-bpe.'),
        (dict(architecture='grok'), 'architecture grok is not supported'),
        (dict(extra={'rope_factors_long.weight': [1.0]}), 'rotary embedding is scaled .rope_factors_long.weight.'),
        (dict(extra={'rope_freqs.weight': [1.0, 2.0, 8.0, 8.0]}), 'scaled in a way other than that of Llama 3'),
    ],
)
def test_what_would_be_read_wrongly_is_refused(tmp_path, llama, tokenizer, cache, wrong, named):
    path = write_gguf(tmp_path / 'tiny.gguf', llama, tokenizer, **wrong)
    with pytest.raises(UsageError, match=f'^--llm {path}: .*{named}.*Hugging Face id'):
        hub.resolve(str(path))
    assert not list(cache.glob('gguf-*[!k]'))


@pytest.mark.parametrize('size', [0, 3, 100, 5000, -1000])
def test_a_cut_off_file(tmp_path, llama, tokenizer, size):
    path = write_gguf(tmp_path / 'tiny.gguf', llama, tokenizer)
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    with pytest.raises(UsageError, match=f'^--llm {path}: transformers .* cannot read .* get it again'):
        hub.resolve(str(path))


def test_a_damaged_folder_is_made_again(tmp_path, llama, tokenizer):
    path = write_gguf(tmp_path / 'tiny.gguf', llama, tokenizer)
    weights = f'{hub.resolve(str(path))}/model.safetensors'
    os.truncate(weights, 1000)
    cache_module._checked.clear()
    torch.testing.assert_close(logits(loaded(path)), logits(llama))


def test_by_any_process_of_a_distributed_run(tmp_path, llama, tokenizer):
    """transformers saves in the first one alone."""
    path = write_gguf(tmp_path / 'tiny.gguf', llama, tokenizer)
    torch.distributed.init_process_group('fake', store=FakeStore(), rank=1, world_size=2)
    try:
        torch.testing.assert_close(logits(loaded(path)), logits(llama))
    finally:
        torch.distributed.destroy_process_group()


def test_a_full_disk(tmp_path, llama, tokenizer, monkeypatch):
    path = write_gguf(tmp_path / 'tiny.gguf', llama, tokenizer)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UsageError, match=f'^--llm {path}: .*GB are needed.*make room, or set XDG_CACHE_HOME'):
        hub.resolve(str(path))


def test_a_disk_that_fills_up(tmp_path, llama, tokenizer, monkeypatch):
    """Rust writes the file, and its error is none of Python's; /dev/full is a disk without room."""
    path = write_gguf(tmp_path / 'tiny.gguf', llama, tokenizer)
    monkeypatch.setattr('tempfile.mkdtemp', lambda *a, made=tempfile.mkdtemp, **k: full(made(*a, **k)))
    with pytest.raises(UsageError, match=f'^--llm {path}: .*No space left on device.*set XDG_CACHE_HOME'):
        hub.resolve(str(path))


def full(folder):
    os.symlink('/dev/full', f'{folder}/tokenizer.json')
    return folder


def test_a_cache_that_cannot_be_written(tmp_path, llama, tokenizer, monkeypatch):
    path = write_gguf(tmp_path / 'tiny.gguf', llama, tokenizer)
    monkeypatch.setenv('XDG_CACHE_HOME', str(path))
    with pytest.raises(UsageError, match=f'^--llm {path}: .*Not a directory.*set XDG_CACHE_HOME'):
        hub.resolve(str(path))


def test_without_the_package_gguf(tmp_path, llama, tokenizer, monkeypatch):
    path = write_gguf(tmp_path / 'tiny.gguf', llama, tokenizer)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'spt_parlai\[gguf\]'"):
        hub.resolve(str(path))


def test_the_folder_is_an_ordinary_model_folder(tmp_path, llama, tokenizer):
    """It says nothing of where or of what it was made."""
    folder = hub.resolve(str(write_gguf(tmp_path / 'tiny.gguf', llama, tokenizer)))
    texts = {name: open(f'{folder}/{name}').read() for name in os.listdir(folder) if name.endswith('.json')}
    assert not [name for name, text in texts.items() if str(tmp_path) in text or 'gguf' in text]
    assert json.loads(texts['config.json'])['architectures'] == ['LlamaForCausalLM']
