"""Several replies drawn in one batch: what each row draws, how often the LLM runs, and scores of given replies."""

from functools import partial

import pytest
import torch
from helpers.families import build, draw, pad, tiny_lm

from spt_parlai.model import candidates
from spt_parlai.model.candidates import OwnDraws, draw_replies, target_log_probs
from spt_parlai.model.decoding import Search, greedy, nucleus, top_k
from spt_parlai.model.prompted_lm import Selection

CONTEXTS, START, END, STEPS, K = draw([7, 3, 11], seed=1), -2, 2, 9, 3
TOP_K = partial(top_k, k=20)
SEARCH = Search(TOP_K, START, END, STEPS)


def encoded(model, contexts=CONTEXTS):
    """The states of all contexts after all prompts: row i · K + k."""
    of = torch.arange(len(contexts)).repeat_interleave(K)
    with torch.no_grad():
        return model.encoder(pad(contexts)[of], selection=Selection(torch.zeros(len(of), K), torch.arange(K).repeat(3)))


def drawn(model, states, rows, seeds, search=SEARCH):
    with torch.no_grad():
        replies = draw_replies(model, states, search, rows, seeds)
    return [row[:n].tolist() for row, n in zip(replies.tokens, replies.lengths.tolist(), strict=True)]


@pytest.mark.parametrize('choose', [TOP_K, partial(nucleus, p=0.9)], ids=['top-k', 'nucleus'])
def test_a_row_draws_the_same_whatever_is_beside_it(choose):
    model, _ = build(tiny_lm('llama'))
    states, search = encoded(model), Search(choose, START, END, STEPS)
    rows, seeds = [0, 0, 4, 8, 8, 8, 1], [5, 6, 5, None, 5, 7, 5]
    together = drawn(model, states, rows, seeds, search)
    apart = [drawn(model, states, [row], [seed], search)[0] for row, seed in zip(rows, seeds, strict=True)]
    assert together == apart and len(set(map(tuple, together))) == len(rows)
    torch.manual_seed(1)
    assert drawn(model, states, rows[::-1], seeds[::-1], search) == together[::-1]


def test_draws_follow_the_naive_distribution():
    """First tokens of many seeds against the probabilities of a full pass."""
    model, naive = build(tiny_lm('llama'))
    states, count = encoded(model), 4000
    search = Search(partial(top_k, k=5), START, END, 2, temperature=0.7)
    tokens = torch.tensor(drawn_first(model, states, [4] * count, range(count), search))
    logits = naive.logits(1, CONTEXTS[1])[-1] / 0.7
    values, ids = logits.topk(5)
    shares = torch.stack([(tokens == i).double().mean() for i in ids])
    torch.testing.assert_close(shares, values.softmax(-1), rtol=0, atol=0.03)


def drawn_first(model, states, rows, seeds, search):
    with torch.no_grad():
        return draw_replies(model, states, search, rows, list(seeds)).tokens[:, 1].tolist()


def test_rows_without_a_seed_take_the_likeliest_tokens_and_rows_that_end_leave(monkeypatch):
    model, naive = build(tiny_lm('llama'))
    states, ran, decode = encoded(model), [], model.llm.decode
    monkeypatch.setattr(model.llm, 'decode', lambda ids, *rest: (ran.append(len(ids)), decode(ids, *rest))[1])
    expected = [naive.greedy(k, context, STEPS)[0] for context in CONTEXTS for k in range(K)]
    end = expected[0][1]
    rows = [*range(9), *[0] * 9, 4, 5]
    found = drawn(model, states, rows, [None] * 18 + [1, 2], Search(TOP_K, START, end, STEPS))
    for reply, tokens in zip(found, expected, strict=False):
        kept = tokens[: tokens.index(end)] if end in tokens else tokens[:-1]
        assert reply == [START, *kept, end]
    assert ran[0] == 20 and ran[-1] <= 10 and len(ran) <= STEPS - 1


def test_few_rows_at_once_draw_the_same_in_less_memory(monkeypatch):
    model, _ = build(tiny_lm('llama'))
    states, rows, seeds = encoded(model), [0, 0, 4, 8, 8, 8, 1], [5, 6, 5, None, 5, 7, 5]
    together, ran, decode = drawn(model, states, rows, seeds), [], model.llm.decode
    layers = states.cache.layers
    row = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) / len(states.logits)
    longest = states.mask.shape[1]
    monkeypatch.setattr(candidates, 'CACHE_BYTES', int(3.5 * row * (longest + STEPS) / longest))
    monkeypatch.setattr(model.llm, 'decode', lambda ids, *rest: (ran.append(len(ids)), decode(ids, *rest))[1])
    assert drawn(model, states, rows, seeds) == together
    assert max(ran) == 3
    monkeypatch.setattr(candidates, 'CACHE_BYTES', 0)
    assert drawn(model, states, rows, seeds) == together  # one row at a time, however large its cache


def test_states_stay_as_they_are():
    model, _ = build(tiny_lm('opt'))
    states = encoded(model)
    assert drawn(model, states, [0, 3], [1, 2]) == drawn(model, states, [0, 3], [1, 2])


@pytest.mark.parametrize('family', ['opt', 'llama', 'gpt-neo'])
def test_log_probs_of_given_replies(family):
    model, naive = build(tiny_lm(family))
    states, targets = encoded(model), draw([4, 1, 6], seed=9)
    for i, context in enumerate(CONTEXTS):
        for k in range(K):
            with torch.no_grad():
                found = target_log_probs(model, states, i * K + k, pad(targets)).double()
            for row, target in zip(found, targets, strict=True):
                expected = torch.tensor(naive.log_probs(k, context, target)).double()
                torch.testing.assert_close(row[: len(target)], expected, rtol=1e-4, atol=1e-4)
                assert not row[len(target) :].any()


def test_a_greedy_choice_needs_no_seeds():
    log_probs = torch.randn(3, 8).log_softmax(-1)
    choice = OwnDraws(greedy, [1, None, 2], torch.device('cpu'))
    assert choice(log_probs, [False] * 3, [0, 1, 2])[0].tolist() == log_probs.argmax(-1).tolist()
