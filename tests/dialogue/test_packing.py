"""The turns of a dialogue share rows."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from spt_parlai.dialogue.packing import pack

IDS = st.lists(st.integers(0, 5), min_size=1, max_size=5)
quick = settings(max_examples=200, deadline=None)


@quick
@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=6))
def test_growing_contexts_share_one_row(turns):
    contexts, targets, so_far = [], [], []
    for more, target in turns:
        contexts.append([*so_far, *more])
        targets.append([*target, 9])
        so_far = [*contexts[-1], *target]
    packed = pack(contexts, targets)
    assert packed.contexts == [contexts[-1]] and packed.row == [0] * len(turns)
    assert packed.context_length == [len(c) for c in contexts]


@quick
@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=8))
def test_every_turn_finds_its_own_context_at_its_rows_beginning(turns):
    """For any contexts, a turn's row begins with its context, and its target follows where another turn does."""
    contexts, targets = [c for c, _ in turns], [[*t, 9] for _, t in turns]
    packed = pack(contexts, targets)
    assert packed.row[0] == 0 and all(b - a in (0, 1) for a, b in pairwise(packed.row))
    assert len(packed.contexts) == packed.row[-1] + 1
    for i, (row, context) in enumerate(zip(packed.row, contexts, strict=True)):
        whole = packed.contexts[row]
        assert whole[: packed.context_length[i]] == context
        if i + 1 < len(turns) and packed.row[i + 1] == row:
            assert whole[: len(context) + len(targets[i]) - 1] == [*context, *targets[i][:-1]]


def test_a_cut_context_begins_a_row():
    contexts, targets = [[1, 2], [1, 2, 3, 4], [4, 5, 6]], [[3, 9], [5, 9], [7, 9]]
    assert pack(contexts, targets) == ([[1, 2, 3, 4], [4, 5, 6]], [0, 0, 1], [2, 4, 3])
