"""Rows prefilled in parts of similar length continue as if they had run together, and caches grow in place."""

from __future__ import annotations

import pytest
import torch
from helpers.families import FAMILIES, build, draw, pad, tiny_lm
from transformers.cache_utils import DynamicLayer

from spt_parlai.model import kv_cache
from spt_parlai.model.kv_cache import GrowingLayer, parts_to_prefill

CONTEXTS = draw([7, 3, 11, 1, 9, 2], seed=1)
CLOSE = dict(rtol=1e-5, atol=1e-5)


def test_parts_are_of_like_length_and_within_the_limit(monkeypatch):
    monkeypatch.setitem(kv_cache._TOKENS_AT_ONCE, 'cpu', 40)
    lengths = torch.tensor([3, 9, 5, 20, 6, 1])
    mask = torch.arange(20)[None] >= 20 - lengths[:, None]
    assert parts_to_prefill(mask) == [([3], 20), ([1, 4], 9), ([2, 0], 5), ([5], 1)]
    monkeypatch.setitem(kv_cache._TOKENS_AT_ONCE, 'cpu', 1000)  # less than a quarter of it: all together
    assert parts_to_prefill(mask) == [([3, 1, 4, 2, 0, 5], 20)]


@torch.no_grad()
def continued(model, drop):
    """Logits of the prefill and of steps after it, rows dropped and repeated on the way."""
    encoded = model.encoder(pad(CONTEXTS))
    found, state = [encoded.logits], encoded
    tokens = iter(draw([6] * 8, seed=5))
    for step in range(6):
        ids = torch.tensor(next(tokens)[: len(state.mask)])[:, None]
        logits, state = model.decoder(ids, encoded, state)
        found.append(logits[:, 0])
        if drop and step == 2:
            state = model.reorder_decoder_incremental_state(state, torch.tensor([4, 1, 1, 3]))
    return found, state


@pytest.mark.parametrize('family', FAMILIES)
def test_in_parts_as_together(family, monkeypatch):
    model, _ = build(tiny_lm(family))
    model.llm.keeps_caches = False
    expected, plain = continued(model, drop=True)
    assert not any(isinstance(layer, GrowingLayer) for layer in plain.cache.layers)
    monkeypatch.setitem(kv_cache._TOKENS_AT_ONCE, 'cpu', 20)
    monkeypatch.setattr(kv_cache, '_ROOM', 2)  # full after two steps
    model.llm.keeps_caches = True
    found, state = continued(model, drop=True)
    assert model.llm.keeps_caches
    assert all(isinstance(layer, GrowingLayer) for layer in state.cache.layers)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def test_a_growing_layer_is_the_librarys_layer():
    """The same keys and values after updates, reordering, cropping and repeating; no copies while there is room."""

    def block(seed, length, rows=3):
        return torch.randn(2, rows, 2, length, 4, generator=torch.Generator().manual_seed(seed))

    library = DynamicLayer()
    library.update(*block(0, 5))
    growing = GrowingLayer(*block(0, 5))
    for seed, (length, change) in enumerate(
        [
            (1, None),
            (1, lambda layer: layer.reorder_cache(torch.tensor([2, 0, 2]))),
            (3, lambda layer: layer.crop(-2)),
            (90, lambda layer: layer.batch_select_indices(torch.tensor([1, 2, 0]))),
            (1, lambda layer: layer.batch_repeat_interleave(1)),
            (2, None),
        ],
        start=1,
    ):
        for mine, theirs in zip(
            growing.update(*block(seed, length)), library.update(*block(seed, length)), strict=True
        ):
            assert torch.equal(mine, theirs)
        if change:
            change(growing)
            change(library)
        assert torch.equal(growing.keys, library.keys) and torch.equal(growing.values, library.values)
        assert growing.get_seq_length() == library.get_seq_length() and growing.get_mask_sizes(
            1
        ) == library.get_mask_sizes(1)
    place = growing.keys.data_ptr()
    growing.update(*block(9, 1))
    assert growing.keys.data_ptr() == place
