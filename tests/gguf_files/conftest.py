import pytest
from conftest import byte_level_tokenizer
from helpers.tiny_gguf import tiny_llama


@pytest.fixture(scope='session')
def tokenizer():
    return byte_level_tokenizer()


@pytest.fixture(scope='session')
def llama(tokenizer):
    return tiny_llama(tokenizer)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'spt_parlai'
