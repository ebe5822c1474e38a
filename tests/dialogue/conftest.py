"""Dictionaries of both kinds of tokenizers."""

import pytest

from spt_parlai.dialogue.dictionary import TokenizerDictionary


@pytest.fixture(scope='session')
def dictionaries(tiny_llms):
    """`opt` (byte-level BPE, BOS = EOS) and `llama` (Metaspace, no padding token)."""
    return {name: TokenizerDictionary({'llm': getattr(tiny_llms, name)}) for name in ('opt', 'llama')}


@pytest.fixture(params=['opt', 'llama'], scope='session')
def dictionary(request, dictionaries):
    return dictionaries[request.param]
