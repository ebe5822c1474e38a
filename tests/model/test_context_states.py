"""Replies begin from the pass over a dialogue as from a prefill of their own contexts, in every family."""

from __future__ import annotations

import pytest
import torch
from helpers.families import FAMILIES, build, draw, pad, tiny_lm

from spt_parlai.dialogue.packing import pack
from spt_parlai.model import context_states
from spt_parlai.model.decoding import Search, greedy

CLOSE = dict(rtol=1e-5, atol=1e-5)


def dialogue():
    """Three turns that share a row, one whose context was cut, and one that continues it."""
    queries, targets = draw([4, 3, 2, 5, 2], seed=1), [[*y, 2] for y in draw([3, 0, 4, 1, 2], seed=2)]
    contexts: list[list[int]] = []
    for i, (query, before) in enumerate(zip(queries, [[], *targets], strict=False)):
        contexts.append(query if i in (0, 3) else [*contexts[-1], *before[:-1], *query])
    return contexts, targets


@torch.no_grad()
def states_of(model, contexts, targets, **more):
    rows, row, lengths = pack(contexts, targets)
    assert len(rows) == 2
    return model(
        pad(rows),
        pad(targets),
        row=torch.tensor(row),
        context_length=torch.tensor(lengths),
        keep_states=True,
        **more,
    )


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('chunk, at_once', [(3, 1000), (2, 30)])
def test_as_prefilled(family, chunk, at_once):
    model, _ = build(tiny_lm(family))
    model.prompt_chunk, model.tokens_at_once = chunk, at_once
    contexts, targets = dialogue()
    selection = model.retrieve(pad(contexts))._replace(selected=torch.tensor([1, 0, 2, 2, 1]))
    states = states_of(model, contexts, targets, selection=selection).states
    search, order = Search(greedy, -2, 2, 6, block_ngram=1), [3, 0, 4, 2, 1]
    with torch.no_grad():
        expected = model.encoder(
            pad([contexts[i] for i in order]), selection=type(selection)(*(x[order] for x in selection))
        )
        found = states.of(order)
        assert torch.equal(found.mask, expected.mask)
        assert torch.equal(found.selected, expected.selected) and torch.equal(found.scores, expected.scores)
        torch.testing.assert_close(found.logits, expected.logits, **CLOSE)
        a, b = search(model, found), search(model, expected)
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.lengths, b.lengths)
    torch.testing.assert_close(a.scores, b.scores, **CLOSE)
    assert int(a.lengths.max()) > 4 and len(a.tokens.unique(dim=0)) > 2


def test_batches_hold_every_example_once(monkeypatch):
    model, _ = build(tiny_lm('llama'))
    contexts, targets = dialogue()
    states = states_of(model, contexts, targets).states
    lengths = [2 + len(context) for context in contexts]  # with the prompt
    monkeypatch.setattr(context_states, '_TOKENS_AT_ONCE', 2 * max(lengths))
    batches = states.batches()
    assert sorted(i for batch in batches for i in batch) == list(range(5))
    assert batches[0] == sorted(range(5), key=lambda i: -lengths[i])[:2]
    assert all(len(batch) * max(lengths[i] for i in batch) <= 2 * max(lengths) for batch in batches)


def test_none_where_caches_hold_states():
    model, _ = build(tiny_lm('llama'))
    model.llm.keeps_caches = False
    assert states_of(model, *dialogue()).states is None
