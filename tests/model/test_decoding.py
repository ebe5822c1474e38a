"""The batched search against one prompt and one example at a time. Rows that end leave; no copy is needless."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.families import FAMILIES, build, draw, pad, tiny_lm

from spt_parlai.model import decoding
from spt_parlai.model.decoding import Search, greedy, nucleus, top_k

CONTEXTS = draw([7, 3, 11, 1, 5, 9, 2, 4], seed=1)
STEPS, START = 9, -2


def searched(model, contexts, end, **options):
    with torch.no_grad():
        return Search(options.pop('choose', greedy), START, end, **{'max_length': STEPS, **options})(
            model, model.encoder(pad(contexts))
        )


def naive_replies(model, naive, contexts):
    """(tokens, their log-probabilities) of each context, never ended."""
    selected = model.retrieve(pad(contexts)).selected.tolist()
    assert len(set(selected)) > 1, 'all rows select one prompt'
    found = []
    for context, prompt in zip(contexts, selected, strict=True):
        tokens, logits = naive.greedy(prompt, context, STEPS)
        found.append((tokens, logits.log_softmax(-1).amax(-1)))
    return found


def cut(tokens, end):
    """A reply's tokens as ParlAI writes them: the start token, then up to the end token, which ends every reply."""
    kept = tokens[: tokens.index(end)] if end in tokens else tokens[:-1]
    return [START, *kept, end]


def ends_of(replies):
    """A token that never comes, one that opens a reply, and the one that ends replies at the most different places."""
    places = {t: {r.index(t) if t in r else -1 for r in replies} for r in replies for t in r}
    never = next(t for t in range(60) if t not in places)
    return {'never': never, 'first': replies[0][0], 'apart': max(places, key=lambda t: (len(places[t]), -t))}


@pytest.mark.parametrize('family', FAMILIES)
def test_tokens_and_scores_are_those_of_each_row_alone(family):
    model, naive = build(tiny_lm(family))
    expected = naive_replies(model, naive, CONTEXTS)
    for end in ends_of([tokens for tokens, _ in expected]).values():
        replies = searched(model, CONTEXTS, end)
        for n, (tokens, log_probs) in enumerate(expected):
            length = int(replies.lengths[n])
            assert replies.tokens[n, :length].tolist() == cut(tokens, end)
            torch.testing.assert_close(replies.scores[n].double(), log_probs[: length - 1].sum(), rtol=1e-5, atol=1e-5)


def rows_run(model, monkeypatch, contexts, end):
    """(replies, rows of each decoding step of the LM, how often a cache was re-sorted)"""
    ran, sorted_anew = [], []
    decode, reorder = model.llm.decode, decoding._reorder_cache
    monkeypatch.setattr(model.llm, 'decode', lambda ids, *rest: (ran.append(len(ids)), decode(ids, *rest))[1])
    monkeypatch.setattr(decoding, '_reorder_cache', lambda *given: (sorted_anew.append(1), reorder(*given))[1])
    return searched(model, contexts, end), ran, len(sorted_anew)


def test_rows_leave_once_a_third_of_them_has_ended(monkeypatch):
    model, naive = build(tiny_lm('opt'))
    tokens = [tokens for tokens, _ in naive_replies(model, naive, CONTEXTS)]
    end = ends_of(tokens)['apart']
    lengths = [cut(t, end).index(end) for t in tokens]
    assert len(set(lengths)) > 2
    expected, rows, copies = [], len(CONTEXTS), 0
    for step in range(1, max(lengths)):  # after `step` tokens
        living = sum(n > step for n in lengths)
        if rows - living >= rows / 3:
            rows, copies = living, copies + 1
        expected.append(rows)
    _, ran, sorted_anew = rows_run(model, monkeypatch, CONTEXTS, end)
    assert ran == expected and ran[-1] < len(CONTEXTS)
    assert sorted_anew == copies


def test_nothing_is_copied_while_no_row_ends(monkeypatch):
    model, naive = build(tiny_lm('opt'))
    never = ends_of([tokens for tokens, _ in naive_replies(model, naive, CONTEXTS)])['never']
    replies, ran, sorted_anew = rows_run(model, monkeypatch, CONTEXTS, never)
    assert ran == [len(CONTEXTS)] * (STEPS - 1) and sorted_anew == 0
    assert set(replies.lengths.tolist()) == {STEPS + 1} and set(replies.tokens[:, -1].tolist()) == {never}


def test_decoding_stops_when_all_have_ended(monkeypatch):
    model, _ = build(tiny_lm('opt'))
    contexts = [CONTEXTS[0]] * 4
    first = int(searched(model, contexts, end=-9).tokens[0, 1])
    replies, ran, sorted_anew = rows_run(model, monkeypatch, contexts, first)
    assert (ran, sorted_anew) == ([], 0)  # the prefill gave the first token, and that was the end
    assert replies.lengths.tolist() == [2] * 4 and replies.tokens[:, :2].tolist() == [[START, first]] * 4


@pytest.mark.parametrize('choose', [partial(top_k, k=4), partial(nucleus, p=0.8)], ids=['top-k', 'nucleus'])
def test_draws_follow_the_distribution(choose):
    log_probs = torch.randn(8, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    torch.manual_seed(0)
    drawn, scores = choose(log_probs.expand(20_000, -1).contiguous(), [False] * 20_000)
    probs, order = log_probs.exp().sort(descending=True)
    kept = 4 if choose.func is top_k else int((probs.cumsum(0) < 0.8).sum()) + 1
    expected = torch.zeros(8)
    expected[order[:kept]] = probs[:kept] / probs[:kept].sum()
    torch.testing.assert_close(drawn.bincount(minlength=8) / 20_000, expected, rtol=0, atol=0.015)
    renormalised = log_probs if choose.func is top_k else expected.log()
    torch.testing.assert_close(scores, renormalised[drawn])


def test_rows_that_ended_use_up_no_random_numbers():
    log_probs = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    torch.manual_seed(0)
    drawn, _ = top_k(log_probs, [True, False, True, False], k=5)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert drawn[[1, 3]].tolist() == top_k(log_probs[[1, 3]], [False, False], k=5)[0].tolist()
    assert torch.rand(1) == after
