"""MAUVE's features against the LM one text at a time, and what mauve-text gets of them."""

import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from spt_parlai.metrics.mauve import features, mauve

TEXTS = ['i like tea .', 'yes', 'do you have any pets ? i have a dog and two cats .', '']


@pytest.mark.parametrize('llm', ['opt', 'llama'])  # with and without a padding token
def test_features_are_the_last_states_of_each_text(tiny_llms, llm):
    folder = getattr(tiny_llms, llm)
    found = features(TEXTS, folder)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for text, own in zip(TEXTS, found, strict=True):
        ids = tokenizer(text or tokenizer.eos_token, return_tensors='pt').input_ids
        with torch.no_grad():
            wanted = model(ids).last_hidden_state[0, -1].numpy()
        np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-5)


def test_people_are_compared_with_the_model(tiny_llms, monkeypatch):
    given = {}

    def compute_mauve(**arguments):
        given.update(arguments)
        return SimpleNamespace(mauve=0.25)

    module = SimpleNamespace(compute_mauve=compute_mauve, __spec__=object())
    monkeypatch.setitem(sys.modules, 'mauve', module)
    assert mauve(TEXTS[:3], TEXTS[3:], tiny_llms.opt) == 25
    assert given['p_features'].shape == (1, 16) and given['q_features'].shape == (3, 16)
    np.testing.assert_allclose(given['q_features'], features(TEXTS[:3], tiny_llms.opt), atol=1e-5)


def test_without_mauve_text_one_sentence(tiny_llms, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'mauve' else find(name))
    with pytest.raises(ValueError, match='mauve-text is not installed; pip install'):
        mauve(['a'], ['b'], tiny_llms.opt)


def test_a_folder_without_an_lm_is_refused(tmp_path):
    with pytest.raises(ValueError, match='the LM could not be loaded .*; give the folder of an LM'):
        features(['a'], tmp_path)
