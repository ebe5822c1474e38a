"""A context is never empty and never too long, never loses the newest turn, and grows only at its end."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spt_parlai.dialogue.messages import Dialogue, Turn
from spt_parlai.dialogue.template import REPLY, build_context, render

quick = settings(max_examples=60, deadline=None)

# words of the corpus, odd scripts, and what looks like a marker or a special token
WORDS = st.sampled_from(
    [
        'hello',
        'how',
        'are',
        'you',
        '?',
        'Q:',
        'R:',
        'context:',
        'given persona:',
        '</s>',
        '<s>',
        '<pad>',
        '<unk>',
        '▁',
        'Ġ',
        'привет',
        '你好',
        'مرحبا',
        '😀',
        '\u200b',
        '\x07',
        'w' * 60,
    ]
) | st.text(st.characters(exclude_categories=['Cs', 'Zs', 'Zl', 'Zp', 'Cc']), min_size=1, max_size=6)
SENTENCES = st.lists(WORDS, min_size=1, max_size=6).map(' '.join)
PERSONAS = st.lists(SENTENCES, max_size=4)
TURNS = st.lists(st.builds(Turn, SENTENCES, st.booleans()), max_size=7)
DIALOGUES = st.builds(Dialogue, PERSONAS, TURNS)


def context(dictionary, dialogue, limit=None):
    return build_context(dialogue, dictionary.piece, dictionary.bos, limit)


def ends_with(ids, end):
    return ids[len(ids) - len(end) :] == tuple(end)


def test_is_the_template_of_section_4_1(dictionary):
    dialogue = Dialogue(
        ['i like tea.', 'i have a dog.'], [Turn('hello', False), Turn('hi', True), Turn('how are you ?', False)]
    )
    built = context(dictionary, dialogue)
    assert built.text == 'given persona: i like tea. i have a dog.; context: Q: hello R: hi Q: how are you ? R:'
    assert dictionary.tokenizer.decode(built.ids[1:]) == built.text
    assert built.length == len(built.ids)


def test_leaves_the_persona_clause_out_without_persona(dictionary):
    assert context(dictionary, Dialogue([], [Turn('hello', False)])).text == 'context: Q: hello R:'
    assert context(dictionary, Dialogue()).text == 'context: R:'


@quick
@given(dialogue=DIALOGUES, limit=st.integers(8, 60))
def test_never_empty_and_never_above_the_limit(dictionaries, dialogue, limit):
    for dictionary in dictionaries.values():
        full, cut = context(dictionary, dialogue), context(dictionary, dialogue, limit)
        assert 0 < len(cut.ids) <= limit
        assert cut.length == full.length == len(full.ids)
        assert cut.ids[0] == dictionary.bos
        assert ends_with(cut.ids, dictionary.piece(REPLY, False))
        if full.length <= limit:
            assert cut == full


@quick
@given(dialogue=DIALOGUES, limit=st.integers(8, 60))
def test_users_never_write_special_tokens(dictionaries, dialogue, limit):
    for dictionary in dictionaries.values():
        special = set(dictionary.tokenizer.all_special_ids)
        for built in (context(dictionary, dialogue), context(dictionary, dialogue, limit)):
            assert built.ids[0] == dictionary.bos
            assert not special & set(built.ids[1:])


@quick
@given(persona=PERSONAS, turns=st.lists(SENTENCES, min_size=2, max_size=8))
def test_a_context_and_its_reply_are_a_prefix_of_the_next_context(dictionaries, persona, turns):
    for dictionary in dictionaries.values():
        dialogue = Dialogue(list(persona))
        seen = ()
        for number, text in enumerate(turns):
            if number % 2:
                before = context(dictionary, dialogue).ids
                dialogue.reply(text)
                seen = (*before, *dictionary.txt2vec(text))
            else:
                dialogue.observe(text)
            now = context(dictionary, dialogue).ids
            assert now[: len(seen)] == seen


@quick
@given(dialogue=DIALOGUES, limit=st.integers(20, 120))
def test_what_is_kept_is_the_newest(dictionaries, dialogue, limit):
    for dictionary in dictionaries.values():
        full, cut = context(dictionary, dialogue), context(dictionary, dialogue, limit)
        text = cut.text.removesuffix(f' {REPLY}')
        for turn in dialogue.turns[-1:]:
            assert text.endswith(turn.text)
        kept = Dialogue(dialogue.persona, dialogue.turns)
        while render(kept) != cut.text:  # the oldest turns go first, so the text consists of the newest ones
            assert kept.turns, cut.text
            kept = Dialogue(kept.persona, kept.turns[1:])
        whole = context(dictionary, kept)
        if len(kept.turns) > 1:  # if more than one turn is kept, they and the persona are whole
            assert cut.ids == whole.ids
        if len(kept.turns) < len(dialogue.turns):  # and one turn more would not fit
            more = Dialogue(dialogue.persona, dialogue.turns[-len(kept.turns) - 1 :])
            assert len(context(dictionary, more).ids) > limit
        assert cut.length == full.length


def test_an_utterance_above_the_limit_keeps_its_end(dictionary):
    words = ' '.join(f'w{i}' for i in range(200))
    cut = context(dictionary, Dialogue(['i ski.'], [Turn('hello', False), Turn(words, False)]), 60)
    text = dictionary.tokenizer.decode(cut.ids[1:])
    assert len(cut.ids) == 60 and cut.length > 400
    assert (
        text.startswith('given persona: i ski.; context: Q:') and text.endswith('w198 w199 R:') and 'hello' not in text
    )


def test_a_persona_above_the_limit_keeps_its_beginning(dictionary):
    persona = [f'i have {i} dogs.' for i in range(100)]
    cut = context(dictionary, Dialogue(persona, [Turn('hello', False)]), 60)
    text = dictionary.tokenizer.decode(cut.ids[1:])
    assert len(cut.ids) == 60 and cut.length > 400
    assert text.startswith('given persona: i have 0 dogs. i have 1 dogs.') and text.endswith('context: Q: hello R:')


def test_both_above_the_limit_share_it(dictionary):
    dialogue = Dialogue(['i like tea.'] * 100, [Turn('how are you ? ' * 100 + 'bye', False)])
    cut = context(dictionary, dialogue, 80)
    text = dictionary.tokenizer.decode(cut.ids[1:])
    assert len(cut.ids) == 80
    assert text.startswith('given persona: i like tea. i like tea.') and text.endswith('how are you ? bye R:')
    assert text.count('tea') >= 3 and text.count('how') >= 3


@pytest.mark.parametrize('limit', range(8, 40))
def test_every_limit_is_used_up_by_one_long_utterance(dictionary, limit):
    built = context(dictionary, Dialogue([], [Turn('a b c d e f g h i j k l m n o p ' * 10, False)]), limit)
    assert len(built.ids) == limit
