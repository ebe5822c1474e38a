"""ParlAI's history interface on top of persona and turns."""

import pytest

from spt_parlai.dialogue.history import DialogueHistory


@pytest.fixture
def history(dictionary):
    return lambda persona=(), size=-1, maxlen=-1: DialogueHistory(
        {}, persona, maxlen=None if maxlen < 0 else maxlen, size=size, dict_agent=dictionary
    )


def test_follows_a_dialogue(history):
    h = history()
    h.update_history({'text': 'your persona: i ski.\nhello'})
    h.add_reply('hi .')
    h.update_history({'text': 'bye'})
    assert h.get_history_str() == 'given persona: i ski.; context: Q: hello R: hi . Q: bye R:'
    assert h.get_history_vec() == list(h.context().ids) and h.get_history_vec_list() == [h.get_history_vec()]


def test_a_reset_returns_to_the_given_persona(history):
    h = history(persona=['i ski.'])
    h.update_history({'text': 'your persona: i run.\nhello'})
    h.reset()
    assert h.get_history_str() == 'given persona: i ski.; context: R:'


def test_size_keeps_the_newest_utterances_and_the_persona(history):
    h = history(size=2)
    h.update_history({'text': 'your persona: i ski.\none'})
    h.add_reply('two')
    h.update_history({'text': 'three'})
    assert h.get_history_str() == 'given persona: i ski.; context: R: two Q: three R:'


def test_a_temporary_message_is_heard_once(history):
    h = history()
    h.update_history({'text': 'hello'}, temp_history='psst')
    assert h.get_history_str() == 'context: Q: hello Q: psst R:'
    h.update_history({'text': 'bye'})
    assert h.get_history_str() == 'context: Q: hello Q: bye R:'


@pytest.mark.parametrize('observation', [{}, {'text': None}, {'text': ''}, {'text': '  '}, {'text': '__SILENCE__'}])
def test_nothing_said_adds_no_turn(history, observation):
    h = history()
    h.update_history(observation)
    assert h.get_history_str() == 'context: R:'


def test_the_limit_holds_for_the_context_alone(history):
    h = history(maxlen=20)
    for _ in range(10):
        h.update_history({'text': 'hello how are you ?'})
    assert len(h.context().ids) <= 20 < len(h.context(whole=True).ids) == h.context().length
