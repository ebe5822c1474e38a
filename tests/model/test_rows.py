"""[sp_i ; c_n ; y_n] as padded rows, against lists built by hand."""

from __future__ import annotations

import torch
from helpers.families import pad
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_parlai.model.rows import join_all, join_chosen, target_positions, token_rows

ROWS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 9), min_size=1, max_size=7),
        st.lists(st.integers(0, 9), min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=5,
)
PROMPTS = st.tuples(st.integers(1, 4), st.integers(1, 3))  # K, L
quick = settings(max_examples=60, deadline=None)


def numbered(*shape: int) -> torch.Tensor:
    """No two entries alike, and none zero."""
    return torch.arange(1, 1 + torch.Size(shape).numel()).float().view(shape)


@quick
@given(ROWS, st.integers(0, 2), st.integers(0, 2))
def test_token_rows(examples, more_context, more_target):
    contexts, targets = pad([c for c, _ in examples]), pad([y for _, y in examples])
    contexts = torch.nn.functional.pad(contexts, (0, more_context), value=-1)
    targets = torch.nn.functional.pad(targets, (0, more_target), value=-1)
    rows = token_rows(contexts, targets)
    M = max(len(c) + len(y) - 1 for c, y in examples)
    for n, (c, y) in enumerate(examples):
        seen, empty = c + y[:-1], M - len(c) - len(y) + 1
        assert rows.ids[n].tolist() == seen + [0] * empty
        assert rows.mask[n].tolist() == [True] * len(seen) + [False] * empty
    assert rows.row.tolist() == list(range(len(examples)))
    assert rows.context_length.tolist() == [len(c) for c, _ in examples]
    assert rows.targets.tolist() == [t for _, y in examples for t in y]
    assert rows.example.tolist() == [n for n, (_, y) in enumerate(examples) for _ in y]
    assert rows.column.tolist() == [len(c) - 1 + i for c, y in examples for i in range(len(y))]


@quick
@given(st.lists(ROWS, min_size=1, max_size=3), PROMPTS)
def test_token_rows_shared_by_examples(dialogues, group):
    """Rows of growing contexts: every predicting position holds the token that comes before the target token."""
    K, L = group
    contexts, targets, row = [], [], []
    for r, turns in enumerate(dialogues):
        so_far = []
        for more, target in turns:
            context = [*so_far, *more]
            contexts.append(context)
            targets.append(target)
            row.append(r)
            so_far = [*context, *target[:-1]]
    last = [max(i for i, r in enumerate(row) if r == wanted) for wanted in range(len(dialogues))]
    lengths = torch.tensor([len(c) for c in contexts])
    rows = token_rows(pad([contexts[i] for i in last]), pad(targets), torch.tensor(row), lengths)
    assert rows.targets.tolist() == [t for y in targets for t in y]
    for r, i in enumerate(last):
        assert rows.ids[r, rows.mask[r]].tolist() == contexts[i] + targets[i][:-1]
    n = 0
    for b, (context, target) in enumerate(zip(contexts, targets, strict=True)):
        for i in range(len(target)):
            seen = rows.ids[row[b], : int(rows.column[n]) + 1].tolist()
            assert seen == context + target[:i] and int(rows.example[n]) == b
            n += 1
    R, M = rows.ids.shape
    positions = target_positions(rows, K, L)
    assert positions.shape == (K * n,)
    grid = torch.arange(K * R * (L + M)).view(K, R, L + M)
    expected = [
        grid[k, rows.row[e], L + c]
        for k in range(K)
        for e, c in zip(rows.example.tolist(), rows.column.tolist(), strict=True)
    ]
    assert positions.tolist() == [int(p) for p in expected]


@quick
@given(ROWS, st.integers(-9, -1))
def test_token_rows_takes_any_negative_id_for_padding(examples, padding):
    contexts, targets = [c for c, _ in examples], [y for _, y in examples]
    expected = token_rows(pad(contexts), pad(targets))
    rows = token_rows(pad(contexts, padding), pad(targets, padding))
    assert all(torch.equal(a, b) for a, b in zip(rows, expected, strict=True))


@quick
@given(ROWS, PROMPTS)
def test_join_all_and_target_positions(examples, group):
    """Every row is prompt, context, target; each position's output is that of the column before its token."""
    K, L = group
    rows = token_rows(pad([c for c, _ in examples]), pad([y for _, y in examples]))
    B, M = rows.ids.shape
    prompts, words = -numbered(K, L, 2), numbered(B, M, 2)
    joined = join_all(prompts, words)
    assert joined.shape == (K * B, L + M, 2)
    for k in range(K):
        for n in range(B):
            assert joined[k * B + n].tolist() == prompts[k].tolist() + words[n].tolist()
    expected = [
        (k * B + n) * (L + M) + L + len(c) + i - 1
        for k in range(K)
        for n, (c, y) in enumerate(examples)
        for i in range(len(y))
    ]
    positions = target_positions(rows, K, L)
    assert positions.tolist() == expected
    real = torch.cat([rows.mask.new_ones(B, L), rows.mask], dim=1).repeat(K, 1)
    assert real.flatten()[positions].all()


@quick
@given(ROWS, st.integers(1, 3))
def test_join_chosen(examples, L):
    """Rows end together, all padding on the left."""
    contexts = pad([c for c, _ in examples])
    B, M = contexts.shape
    chosen, words = -numbered(B, L, 2), numbered(B, M, 2)
    joined, mask = join_chosen(chosen, words, contexts >= 0)
    assert joined.shape == (B, L + M, 2)
    for n, (c, _) in enumerate(examples):
        empty = M - len(c)
        assert mask[n].tolist() == [False] * empty + [True] * (L + len(c))
        assert joined[n, empty:].tolist() == chosen[n].tolist() + words[n, : len(c)].tolist()


def test_prompts_take_the_dtype_of_the_words_and_keep_their_gradient():
    prompts = torch.randn(2, 3, 4, requires_grad=True)
    joined = join_all(prompts, torch.randn(5, 2, 4, dtype=torch.bfloat16))
    assert joined.dtype == torch.bfloat16
    joined.float().sum().backward()
    assert torch.equal(prompts.grad, torch.full((2, 3, 4), 5.0))  # one for each example
