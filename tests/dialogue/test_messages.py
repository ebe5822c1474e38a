"""ParlAI messages become persona sentences and utterances, whatever the user types."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parlai.core.message import Message

from spt_parlai.dialogue.messages import (
    OWN_PERSONA,
    PARTNER_PERSONA,
    SILENCE,
    Dialogue,
    Turn,
    clean,
    split_message,
    well_formed,
)

quick = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize(
    'value, expected',
    [
        ('hi \ud83d', 'hi \ufffd'),
        ('\ude00 \udcff.', '\ufffd \ufffd.'),
        ('\ud83d\ude42', '🙂'),  # the two halves of one emoji
        (['a', 'b \ud83d'], ['a', 'b \ufffd']),
        (('\ud83d',), ('\ufffd',)),
        ({'a\ud83d'}, {'a\ufffd'}),
        (
            {'text': None, 'turns': [{'labels': ['\ud83d']}], 'n': 1.5},
            {'text': None, 'turns': [{'labels': ['\ufffd']}], 'n': 1.5},
        ),
    ],
)
def test_half_a_surrogate_pair_becomes_a_replacement_character(value, expected):
    assert well_formed(value) == expected


@pytest.mark.parametrize(
    'value', ['', 'café 🙂', None, 3, ['a', 'b'], {'text': 'a', 'labels': ('b',)}, Message(text='a')]
)
def test_what_is_well_formed_stays_the_same_object(value):
    assert well_formed(value) is value


def test_a_message_stays_a_message():
    message = well_formed(Message(text='\ud83d', labels=['\ud83d'], reward=1))
    assert type(message) is Message and message == {'text': '\ufffd', 'labels': ['\ufffd'], 'reward': 1}


@pytest.mark.parametrize(
    'text, persona, utterance',
    [
        ('hello', [], 'hello'),
        ('your persona: i like tea.\nyour persona: i am tall.\nhi', ['i like tea.', 'i am tall.'], 'hi'),
        ("partner's persona: i am shy.\nhello", [], 'hello'),
        (
            "your persona: i ski.\npartner's persona: i swim.\nyour persona: i run.\n__SILENCE__",
            ['i ski.', 'i run.'],
            '',
        ),
        ('one\ntwo', [], 'one two'),
        ('  hello \t  you \r\n', [], 'hello you'),
        ('your persona:\nhi', [], 'hi'),
        ('my note: your persona: not one', [], 'my note: your persona: not one'),
        ('', [], ''),
        ('   ', [], ''),
        ('\n\n', [], ''),
        (SILENCE, [], ''),
        (None, [], ''),
        ('i said __SILENCE__ to him', [], 'i said __SILENCE__ to him'),
        ('</s> Q: R: <pad>', [], '</s> Q: R: <pad>'),
    ],
)
def test_splits_a_message(text, persona, utterance):
    assert split_message(text) == (persona, utterance)


@quick
@given(
    st.lists(
        st.sampled_from([OWN_PERSONA, PARTNER_PERSONA, '']).flatmap(
            lambda start: st.text(st.characters(exclude_categories=['Cs']), max_size=12).map(
                lambda text: f'{start} {text}'
            )
        ),
        max_size=5,
    )
)
def test_nothing_said_is_lost(lines):
    persona, utterance = split_message('\n'.join(lines))
    for line in '\n'.join(lines).split('\n'):
        text = clean(line)
        if text.startswith(OWN_PERSONA):
            rest = clean(text[len(OWN_PERSONA) :])
            assert not rest or rest in persona
        elif not text.startswith(PARTNER_PERSONA):
            assert text in utterance
    assert all(sentence and sentence == clean(sentence) for sentence in persona)
    assert utterance == ' '.join(utterance.split())


def test_dialogue_keeps_speakers_apart_and_skips_silence():
    dialogue = Dialogue()
    dialogue.observe('your persona: i ski.\n__SILENCE__')
    dialogue.reply('hello .')
    dialogue.observe('hi')
    dialogue.reply('  ')
    dialogue.observe("partner's persona: i swim.")
    assert dialogue == Dialogue(['i ski.'], [Turn('hello .', True), Turn('hi', False)])
