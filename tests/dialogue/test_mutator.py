"""Turns of a dialogue in shared rows, and the mutator that brings them together."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parlai.core.message import Message

from spt_parlai.dialogue.mutator import FIELD, WholeDialogue, pack

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
    """Whatever the contexts are: a turn's row begins with its context, and the target follows where another turn does."""
    contexts, targets = [c for c, _ in turns], [[*t, 9] for _, t in turns]
    packed = pack(contexts, targets)
    assert packed.row[0] == 0 and all(b - a in (0, 1) for a, b in zip(packed.row, packed.row[1:]))
    assert len(packed.contexts) == packed.row[-1] + 1
    for i, (row, context) in enumerate(zip(packed.row, contexts)):
        whole = packed.contexts[row]
        assert whole[: packed.context_length[i]] == context
        if i + 1 < len(turns) and packed.row[i + 1] == row:
            assert whole[: len(context) + len(targets[i]) - 1] == [*context, *targets[i][:-1]]


def test_a_cut_context_begins_a_row():
    contexts, targets = [[1, 2], [1, 2, 3, 4], [4, 5, 6]], [[3, 9], [5, 9], [7, 9]]
    assert pack(contexts, targets) == ([[1, 2, 3, 4], [4, 5, 6]], [0, 0, 1], [2, 4, 3])


def episode():
    return [
        Message(text='your persona: i ski.\nhello', labels=['hi'], label_candidates=['hi', 'no']),
        Message(text='how are you ?', labels=['fine', 'well']),
        Message(text='bye', labels=None),
    ]


def mutate(messages, **options):
    opt = {
        'training_loop': True,
        'datatype': 'train',
        'dialogue_packing': True,
        'mutators': 'whole_dialogue',
        **options,
    }
    return list(WholeDialogue(opt)([Message({**m, 'episode_done': m is messages[-1]}) for m in messages]))


def test_an_episode_becomes_one_message():
    (message,) = mutate(episode())
    assert message['episode_done'] is True and message['labels'] == ['hi'] and 'label_candidates' not in message
    assert message[FIELD] == [
        {'text': 'your persona: i ski.\nhello', 'labels': ['hi']},
        {'text': 'how are you ?', 'labels': ['fine', 'well']},
        {'text': 'bye', 'labels': None},
    ]


@pytest.mark.parametrize(
    'options',
    [
        {'training_loop': False},
        {'datatype': 'valid'},
        {'datatype': 'test'},
        {'datatype': 'train:evalmode'},
        {'dialogue_packing': False},
        {'use_reply': 'model'},
        {'mutators': None},
    ],
    ids=str,
)
def test_other_episodes_stay(options):
    messages = mutate(episode(), **options)
    assert [m['text'] for m in messages] == [m['text'] for m in episode()]
