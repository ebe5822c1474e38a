"""The mutator that turns an episode into one message."""

from __future__ import annotations

import pytest
from parlai.core.message import Message

from spt_parlai.dialogue.mutator import FIELD, WholeDialogue


def episode():
    return [
        Message(text='your persona: i ski.\nhello', labels=['hi'], label_candidates=['hi', 'no']),
        Message(text='how are you ?', labels=['fine', 'well']),
        Message(text='bye', labels=None),
    ]


def mutate(messages, **options):
    opt = {
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
        {'mutators': 'flatten'},
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
