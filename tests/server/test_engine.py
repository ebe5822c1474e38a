"""The engine replies as the agent does, row by row and all at once, and nothing that is asked of it stops it."""

import threading
import time

import pytest
import torch
from helpers.real_agents import heard
from helpers.runs import agent_of

from spt_parlai.dialogue.messages import Turn
from spt_parlai.server.engine import Ended, Engine, Failed, Finished, Piece, ReplyRequest, Selected

DIALOGUES = [
    (['i like tea.'], ['hello ! how are you ?'], 'x'),
    ([], ['what do you do ?', 'i am a nurse .', 'do you have any pets ?'], 'x'),
    (['i have a dog.', 'my name is anna .'], ['i like cats .'], 'x'),
]


def asked(dialogue, **more):
    persona, utterances, _ = dialogue
    turns = tuple(Turn(text, own=i % 2 == 1) for i, text in enumerate(utterances))
    return ReplyRequest(tuple(persona), turns, **{'max_tokens': 11, **more})


def answered(engine, request):
    """(the retriever's choice, the texts, the pieces of each row) of a request."""
    selected, *events = engine.events(request)
    assert isinstance(selected, Selected) and isinstance(events[-1], Finished), events
    texts = {event.row: event.text for event in events if isinstance(event, Ended)}
    pieces = {row: ''.join(e.text for e in events if isinstance(e, Piece) and e.row == row) for row in texts}
    return selected, [texts[row] for row in sorted(texts)], pieces


@pytest.fixture
def engine(model, monkeypatch):
    monkeypatch.setattr(model.engine, 'marks', ())
    return model.engine


def test_replies_are_those_of_the_agent(engine, spt_agent):
    expected = spt_agent.clone().batch_act(heard(spt_agent, DIALOGUES))
    for dialogue, reply in zip(DIALOGUES, expected, strict=True):
        selected, (text,), pieces = answered(engine, asked(dialogue))
        assert text == reply['text'] and pieces == {0: text} and len(text) > 3
        assert selected.selected == reply['selected_prompt'] and selected.prompts == [reply['selected_prompt']]
        assert selected.scores == pytest.approx(reply['prompt_scores'], rel=1e-3)


@pytest.mark.parametrize('kind', ['PromptTuningAgent', 'TextPromptAgent', 'InContextAgent', 'LoraAgent'])
def test_other_agents_reply_as_they_do_in_a_chat(tiny_llms, kind):
    more = {'prompt_text': 'a chat .'} if kind == 'TextPromptAgent' else {}
    agent = agent_of(tiny_llms.opt, kind, max_new_tokens=12, stop_at_next_speaker='true', **more)
    expected = agent.clone().batch_act(heard(agent, DIALOGUES))
    engine = Engine(agent.clone())
    try:
        for dialogue, reply in zip(DIALOGUES, expected, strict=True):
            selected, (text,), _ = answered(engine, asked(dialogue))
            assert text == reply['text'] and selected.scores == [0.0]
    finally:
        engine.close()


def test_a_reply_ends_at_the_next_speakers_mark_and_no_token_later(tiny_llms, monkeypatch):
    agent = agent_of(tiny_llms.opt, 'InContextAgent', max_new_tokens=12)
    said = [*b'yes Q: x and more']
    engine = Engine(agent)
    monkeypatch.setattr(engine.agent.dict, 'decode', lambda ids: bytes(said[: len(ids)]).decode())
    try:
        *_, ended, finished = engine.events(asked(DIALOGUES[0]))
        assert (ended.text, ended.reason, finished.reply_tokens) == ('yes', 'stop', 6)
    finally:
        engine.close()


def test_all_prompts_reply_as_each_one_forced(engine, spt_agent):
    (expected,) = spt_agent.replies_of_all_prompts(heard(spt_agent, DIALOGUES[:1]))
    selected, texts, _ = answered(engine, asked(DIALOGUES[0], prompts=(0, 1, 2)))
    assert texts == expected['replies'] and len({*texts}) > 1
    assert selected.prompts == [0, 1, 2] and selected.selected == expected['selected']
    assert answered(engine, asked(DIALOGUES[0], prompts=(2,)))[1] == [expected['replies'][2]]


def test_what_is_asked_at_once_is_decoded_together_and_gives_the_same(engine):
    requests = [asked(DIALOGUES[i % 3], max_tokens=2 + i % 9) for i in range(32)]
    alone = [answered(engine, request)[1] for request in requests]
    batches, reply = [], engine._reply
    engine._reply = lambda jobs: (batches.append(len(jobs)), reply(jobs))
    together = [None] * len(requests)

    def ask(i):
        together[i] = answered(engine, requests[i])[1]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    del engine._reply
    assert together == alone
    assert sum(batches) == 32 and len(batches) <= 8


def test_sampled_replies_differ_and_their_nucleus_counts(engine):
    torch.manual_seed(0)
    _, drawn, _ = answered(engine, asked(DIALOGUES[0], n=6, temperature=1.5))
    assert len({*drawn}) > 3
    greedy = answered(engine, asked(DIALOGUES[0]))[1]
    assert answered(engine, asked(DIALOGUES[0], n=2, temperature=1.5, top_p=0.001))[1] == greedy * 2


def test_a_reply_ends_before_a_stop_string(engine):
    _, (text,), _ = answered(engine, asked(DIALOGUES[0]))
    stop = text[len(text) // 2 :][:3]
    _, (short,), pieces = answered(engine, asked(DIALOGUES[0], stop=(stop,)))
    assert short == text.partition(stop)[0].rstrip() and pieces[0] == short


def test_a_reply_has_at_most_as_many_tokens_as_asked_for(engine):
    *_, ended, finished = engine.events(asked(DIALOGUES[0], max_tokens=3))
    assert ended.reason == 'length' and finished.reply_tokens == 3 and finished.context_tokens > 10


def test_no_reply_is_longer_than_the_window_leaves_room_for(engine, model):
    room = model.about['spt_most_tokens']
    long = ReplyRequest(turns=(Turn('hello ! ' * 500, own=False),), max_tokens=1_000_000, stop=('nowhere',))
    *_, ended, finished = engine.events(long)
    assert isinstance(finished, Finished) and finished.reply_tokens <= room
    assert ended.reason == 'stop' or finished.reply_tokens == room


def test_a_dialogue_may_begin_with_the_model(engine):
    assert answered(engine, ReplyRequest(persona=('i like tea .',)))[1]


def test_whoever_leaves_is_not_waited_for(spt_agent):
    engine = Engine(spt_agent.clone())
    steps, decoder = [], engine.model.decoder

    def slow(*args):
        steps.append(1)
        time.sleep(0.005)
        return decoder(*args)

    engine.model.decoder = slow
    try:
        for event in engine.events(asked(DIALOGUES[0], max_tokens=100, stop=('nowhere',))):
            if isinstance(event, Piece):
                break
        assert answered(engine, asked(DIALOGUES[1], max_tokens=2))
        assert len(steps) < 50
    finally:
        del engine.model.decoder
        engine.close()


def test_a_failure_is_told_and_the_next_request_is_answered(engine, monkeypatch):
    def fail(*_):
        raise RuntimeError('out of paper')

    with monkeypatch.context() as patch:
        patch.setattr(engine.model, 'retrieve', fail)
        (event,) = engine.events(asked(DIALOGUES[0]))
        assert event == Failed('error', 'RuntimeError: out of paper')
    assert answered(engine, asked(DIALOGUES[0]))


def test_a_listener_that_fails_harms_nobody(engine):
    def fail(_):
        raise RuntimeError('gone')

    engine.submit(asked(DIALOGUES[0]), fail)
    assert answered(engine, asked(DIALOGUES[1]))


def test_time_and_queue_are_bounded(engine, monkeypatch):
    (event,) = engine.events(asked(DIALOGUES[0], seconds=-1))
    assert event.kind == 'timeout'
    monkeypatch.setattr(engine, 'most_waiting', 3)
    (event,) = engine.events(asked(DIALOGUES[0], n=4))
    assert event.kind == 'busy'


def test_a_closed_engine_says_so(spt_agent):
    engine = Engine(spt_agent.clone())
    engine.close()
    (event,) = engine.events(asked(DIALOGUES[0]))
    assert event.kind == 'closed'
