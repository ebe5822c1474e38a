"""A dialogue as an instruction: its text, what is truncated first, and the messages that chats accept."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_parlai.dialogue.instruction import (
    BEGIN,
    Instruction,
    chat_messages,
    cut_to_fit,
    ever_shorter,
    first_turn_of,
    instructed_context,
    without_system,
)
from spt_parlai.dialogue.messages import Dialogue, Turn
from spt_parlai.dialogue.template import build_context, render

THEIRS, OWN = (lambda text: Turn(text, False)), (lambda text: Turn(text, True))
DIALOGUE = Dialogue(['i ski.', 'i like tea.'], [THEIRS('hello'), OWN('hi'), THEIRS('how are you ?')])
EXAMPLES = [Dialogue(['i run.'], [THEIRS('bye'), OWN('bye bye')]), Dialogue([], [OWN('yes ?'), THEIRS('no')])]
TELL = Instruction('reply .', EXAMPLES)
TURNS = st.lists(
    st.builds(Turn, st.sampled_from(['hello', 'i am fine , thanks .', 'what do you do ?', 'w' * 40]), st.booleans()),
    max_size=6,
)
DIALOGUES = st.builds(Dialogue, st.lists(st.just('i have a dog.'), max_size=3), TURNS)


def told(dictionary, dialogue, instruction=TELL, limit=None):
    return instructed_context(dialogue, instruction, dictionary.piece, dictionary.bos, limit)


def test_as_a_text(dictionary):
    built = told(dictionary, DIALOGUE)
    assert dictionary.tokenizer.decode(built.ids[1:]) == (
        'reply . example: given persona: i run.; context: Q: bye R: bye bye example: context: R: yes ? Q: no '
        'given persona: i ski. i like tea.; context: Q: hello R: hi Q: how are you ? R:'
    )
    assert built.ids[0] == dictionary.bos and built.text == render(DIALOGUE) and built.length == len(built.ids)


def test_examples_give_way_before_any_turn_and_turns_before_the_instruction(dictionary):
    full, bare = told(dictionary, DIALOGUE), told(dictionary, DIALOGUE, TELL._replace(examples=()))
    one = told(dictionary, DIALOGUE, TELL._replace(examples=EXAMPLES[:1]))
    assert told(dictionary, DIALOGUE, limit=len(full.ids)) == full
    for limit, left in ((len(full.ids) - 1, one), (len(one.ids), one), (len(one.ids) - 1, bare), (len(bare.ids), bare)):
        cut = told(dictionary, DIALOGUE, limit=limit)
        assert cut.ids == left.ids and cut.length == len(full.ids)
    shorter = told(dictionary, DIALOGUE, limit=len(bare.ids) - 1)
    text = dictionary.tokenizer.decode(shorter.ids[1:])
    assert (
        text == 'reply . given persona: i ski. i like tea.; context: R: hi Q: how are you ? R:'
        and shorter.length == len(full.ids)
    )


@pytest.mark.parametrize('most, turns, sentences', [(99, 4, 2), (6, 4, 2), (5, 2, 2), (4, 2, 2), (3, 2, 1), (2, 2, 0)])
def test_an_example_is_cut_from_its_end_and_ends_with_an_own_turn(most, turns, sentences):
    example = Dialogue(['a', 'b'], [THEIRS('1'), OWN('2'), THEIRS('3'), OWN('4'), THEIRS('5')])
    shown = cut_to_fit(example, most, lambda part: len(part.persona) + len(part.turns))
    assert shown == Dialogue(example.persona[:sentences], example.turns[:turns])


def test_an_example_of_which_nothing_fits():
    assert cut_to_fit(Dialogue(['a'], [THEIRS('1'), OWN('2')]), 1, lambda part: len(part.turns)) is None
    assert cut_to_fit(Dialogue(['a'], [THEIRS('1')]), 9, lambda part: len(part.turns)) is None


@settings(max_examples=40, deadline=None)
@given(dialogue=DIALOGUES, limit=st.integers(14, 60))
def test_a_text_is_never_above_the_limit_and_grows_by_its_end(dictionaries, dialogue, limit):
    for dictionary in dictionaries.values():
        before = dictionary.piece('x', True)
        cut = build_context(dialogue, dictionary.piece, dictionary.bos, limit, before)
        assert len(cut.ids) <= limit and cut.ids[: len(before) + 1] == (dictionary.bos, *before)
        full = told(dictionary, dialogue)
        more = told(dictionary, Dialogue(dialogue.persona, [*dialogue.turns, OWN('fine'), THEIRS('good')]))
        assert more.ids[: len(full.ids)] == full.ids


@pytest.mark.parametrize(
    'text, first',
    [
        ('hi there Q: who ? R: me', 'hi there'),
        ('hi\nthere', 'hi'),
        ('hi R: there', 'hi'),
        (' hi . ', 'hi .'),
        ('', ''),
        ('Q: hi', ''),
    ],
)
def test_a_reply_ends_where_another_turn_begins(text, first):
    assert first_turn_of(text) == first


def test_as_messages():
    system, *turns = chat_messages(DIALOGUE, TELL)
    assert system == {
        'role': 'system',
        'content': (
            'reply .\n\nExample of a conversation:\nYour persona: i run.\nPartner: bye\nYou: bye bye\n\n'
            'Example of a conversation:\nYou: yes ?\nPartner: no\n\nYour persona: i ski. i like tea.'
        ),
    }
    assert [(m['role'], m['content']) for m in turns] == [
        ('user', 'hello'),
        ('assistant', 'hi'),
        ('user', 'how are you ?'),
    ]


@settings(max_examples=60, deadline=None)
@given(dialogue=DIALOGUES)
def test_messages_alternate_and_begin_with_the_user(dialogue):
    for messages in (chat_messages(dialogue, TELL), [None, *without_system(chat_messages(dialogue, TELL))]):
        roles = [m['role'] for m in messages[1:]]
        assert roles == ['user', 'assistant'] * (len(roles) // 2) + ['user'] * (len(roles) % 2)
        said = ' '.join(m['content'] for m in messages[1:])
        assert all(turn.text in said for turn in dialogue.turns)
    if not dialogue.turns or dialogue.turns[0].own:
        assert chat_messages(dialogue, TELL)[1]['content'] == BEGIN


@settings(max_examples=60, deadline=None)
@given(dialogue=DIALOGUES)
def test_what_is_shown_shrinks_until_hardly_anything_is_left(dialogue):
    sizes, shown = [], list(ever_shorter(dialogue, TELL))
    for left, instruction in shown:
        sizes.append(sum(len(m['content']) for m in chat_messages(left, instruction)))
        assert instruction.text == TELL.text
        if len(left.turns) < len(dialogue.turns) or left.persona != dialogue.persona:
            assert not instruction.examples
    assert shown[0] == (dialogue, TELL) and sizes[-1] <= sizes[0] - 1
    assert not left.persona and all(len(turn.text.split()) == 1 for turn in left.turns) and len(left.turns) <= 1
