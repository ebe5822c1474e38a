"""The client of an endpoint with a real server: what it sends, when it tries again, and what its errors say."""

import email.utils
import logging
import socket
import time

import pytest
from helpers.chat_server import Answer, chat_server, says

from spt_parlai.agents.chat_endpoint import ChatEndpoint
from spt_parlai.errors import UsageError

KEY = 'sk-secret-0123456789'
HELLO = [{'role': 'user', 'content': 'hello'}]
AT_ONCE = {'Retry-After': '0'}


@pytest.fixture
def server():
    with chat_server() as server:
        yield server


@pytest.fixture
def endpoint(server, monkeypatch):
    def make(base=None, **options):
        return ChatEndpoint(
            base or server.base,
            'small',
            {'max_tokens': 5},
            **{
                'key_env': 'TEST_KEY',
                'timeout': 5.0,
                'retries': 2,
                'concurrency': 4,
                **options,
            },
        )

    monkeypatch.setenv('TEST_KEY', KEY)
    return make


def refused(ask) -> str:
    with pytest.raises(UsageError) as error:
        ask()
    sentence = str(error.value)
    assert sentence.startswith('--api-base http://127.0.0.1:') and sentence.endswith('.') and '\n' not in sentence
    assert KEY not in sentence
    return sentence


def test_sends_what_the_protocol_wants(server, endpoint):
    server.key = KEY
    assert endpoint().reply(HELLO) == 'you said : hello'
    assert server.requests == [{'model': 'small', 'max_tokens': 5, 'messages': HELLO}]
    assert (
        server.headers[0]['Authorization'] == f'Bearer {KEY}'
        and server.headers[0]['Content-Type'] == 'application/json'
    )


@pytest.mark.parametrize('ending', ['/', '/chat/completions', '/chat/completions/'])
def test_takes_the_url_as_people_write_it(server, endpoint, ending):
    assert endpoint(server.base + ending).reply(HELLO) == 'you said : hello'


def test_without_a_key_sends_none_not_even_that_of_a_netrc(server, endpoint, monkeypatch, tmp_path):
    (tmp_path / 'netrc').write_text('machine 127.0.0.1 login someone password else\n')
    monkeypatch.setenv('NETRC', str(tmp_path / 'netrc'))
    monkeypatch.delenv('TEST_KEY')
    endpoint().reply(HELLO)
    monkeypatch.setenv('TEST_KEY', KEY)
    endpoint().reply(HELLO)
    assert [headers.get('Authorization') for headers in server.headers] == [None, f'Bearer {KEY}']


@pytest.mark.parametrize('value', ['sk-\n1', 'sk-ключ', 'sk-\x01'])
def test_a_value_that_is_no_key_is_not_shown(endpoint, monkeypatch, value):
    monkeypatch.setenv('TEST_KEY', value)
    with pytest.raises(
        UsageError, match='--api-key-env TEST_KEY: its value contains characters that no key has'
    ) as error:
        endpoint()
    assert value not in str(error.value)


@pytest.mark.parametrize('status', [408, 409, 429, 500, 502, 503, 504, 529])
def test_a_busy_server_is_asked_again(server, endpoint, status):
    server.script = [Answer(status, {'error': {'message': 'busy'}}, AT_ONCE), Answer(status, b'', AT_ONCE)]
    assert endpoint().reply(HELLO) == 'you said : hello'
    assert server.requests == 3 * [server.requests[0]]


def test_pauses_double(server, endpoint):
    server.script = [Answer(500), Answer(503)]
    began = time.perf_counter()
    assert endpoint().reply(HELLO) == 'you said : hello'
    assert 0.375 + 0.75 < time.perf_counter() - began < 3


@pytest.mark.parametrize(
    'asked', ['1', lambda: email.utils.formatdate(time.time() + 2, usegmt=True)], ids=['seconds', 'date']
)
def test_a_pause_is_as_long_as_the_server_asks_for(server, endpoint, asked):
    server.script = [Answer(429, None, {'Retry-After': asked if isinstance(asked, str) else asked()})]
    began = time.perf_counter()
    assert endpoint().reply(HELLO) == 'you said : hello'
    assert 0.9 < time.perf_counter() - began < 4


def test_a_pause_that_makes_no_sense_is_ours(server, endpoint):
    server.script = [Answer(429, None, {'Retry-After': 'soon'})]
    assert endpoint().reply(HELLO) == 'you said : hello'


def test_a_slow_answer_is_asked_for_again(server, endpoint):
    server.script = [says('late', seconds=1.5)]
    assert endpoint(timeout=0.3).reply(HELLO) == 'you said : hello'


def test_an_answer_that_breaks_off_is_asked_for_again(server, endpoint):
    server.script = [Answer(200, b'{"choices": [', announced=500)]
    assert endpoint().reply(HELLO) == 'you said : hello'


def test_gives_up_in_a_sentence(server, endpoint):
    server.script = 3 * [Answer(429, {'error': {'message': f'quota of {KEY} is\nused up'}}, AT_ONCE)]
    sentence = refused(lambda: endpoint().reply(HELLO))
    assert (
        'no reply after 3 tries (' in sentence
        and '429, quota of … is used up' in sentence
        and '--api-retries' in sentence
    )
    server.seconds = 1.0
    assert 'no answer within 0.2 s' in refused(lambda: endpoint(timeout=0.2, retries=0).reply(HELLO))


def test_nobody_there_is_a_sentence(endpoint):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        base = f'http://127.0.0.1:{free.getsockname()[1]}/v1'
    assert 'no connection' in refused(lambda: endpoint(base, retries=1).reply(HELLO))


@pytest.mark.parametrize(
    'status, body, told, way_out',
    [
        (
            401,
            {'error': {'message': f'wrong key: Bearer {KEY}'}},
            'wrong key: Bearer …',
            'set the environment variable TEST_KEY',
        ),
        (403, {'error': 'not for you'}, 'not for you', '--api-model'),
        (404, {'detail': 'no model small'}, 'no model small', 'ends in /v1'),
        (
            400,
            {'error': {'message': 'max_tokens is too large'}},
            'max_tokens is too large',
            'does not accept the request',
        ),
        (422, {'detail': [{'msg': 'bad'}]}, "[{'msg': 'bad'}]", 'does not accept the request'),
        (418, b'<html>tea', '<html>tea', 'does not accept'),
        (302, b'', 'elsewhere', 'does not accept the request'),
        (400, [1, 2], '[1, 2]', 'does not accept the request'),
    ],
)
def test_a_refusal_is_a_sentence_and_not_tried_again(server, endpoint, status, body, told, way_out):
    server.script = [Answer(status, body, {'Location': 'elsewhere'})]
    sentence = refused(lambda: endpoint().reply(HELLO))
    assert f'{status}, ' in sentence and told in sentence and way_out in sentence and len(server.requests) == 1


@pytest.mark.parametrize(
    'body',
    [
        b'',
        b'hello',
        b'<html></html>',
        b'{"choices": [',
        b'\xff\xfe',
        b'[]',
        b'null',
        {},
        {'choices': []},
        {'choices': [{}]},
        {'choices': 3},
        {'choices': [{'message': None}]},
        {'choices': [{'message': {'content': 3}}]},
        {'choices': [{'message': {'content': [{'text': 'a'}]}}]},
        {'choices': [{'message': {'content': [{'type': 'text', 'text': 3}]}}]},
        {'choices': [{'message': {'content': [3]}}]},
    ],
)
def test_an_answer_that_is_none_is_a_sentence(server, endpoint, body):
    server.script = [Answer(200, body)]
    assert 'OpenAI-compatible' in refused(lambda: endpoint().reply(HELLO)) and len(server.requests) == 1


@pytest.mark.parametrize(
    'parts, text',
    [
        ([{'type': 'text', 'text': 'hi there'}], 'hi there'),
        ([{'type': 'text', 'text': 'hi '}, {'type': 'text', 'text': 'there'}], 'hi there'),
        ([{'type': 'thinking', 'thinking': [{'type': 'text', 'text': 'hmm'}]}, {'type': 'text', 'text': 'hi'}], 'hi'),
        ([{'type': 'reasoning', 'text': 'hmm'}], ''),
        ([], ''),
    ],
)
def test_text_in_parts_is_joined(server, endpoint, parts, text):
    server.script = [says(parts)]
    assert endpoint().reply(HELLO) == text


def test_an_answer_that_was_cut_inside_an_emoji_can_be_printed(server, endpoint):
    server.script = [says('hi \ud83d'), Answer(400, {'error': 'no \ud83d'})]
    assert endpoint().reply(HELLO) == 'hi \ufffd'
    assert 'no \ufffd' in refused(lambda: endpoint().reply(HELLO))


@pytest.mark.parametrize('name', ['reasoning_content', 'reasoning'])
@pytest.mark.parametrize('content', [{}, {'content': None}, {'content': ''}, {'content': 'hi'}])
def test_a_thought_beside_an_answer_is_no_reply(server, endpoint, name, content):
    server.script = [Answer(200, {'choices': [{'message': {name: 'hmm', **content}, 'finish_reason': 'length'}]})]
    assert endpoint().reply(HELLO) == (content.get('content') or '')


def test_an_answer_without_words_is_silence(server, endpoint, caplog):
    server.script = [says(None), says('')]
    assert endpoint().reply(HELLO) == endpoint().reply(HELLO) == ''


def test_a_batch_is_asked_for_at_once_and_comes_in_its_order(server, endpoint):
    server.seconds = 0.2
    chats = [[{'role': 'user', 'content': str(i)}] for i in range(12)]
    began = time.perf_counter()
    assert endpoint().replies(chats) == [f'you said : {i}' for i in range(12)]
    assert server.most_under_way == 4 and time.perf_counter() - began < 12 * 0.2 / 2


def test_one_refusal_ends_a_batch_that_waits(server, endpoint):
    server.script = 8 * [Answer(429, None, {'Retry-After': '60'})]
    server.script[2] = Answer(401)
    began = time.perf_counter()
    with pytest.raises(UsageError):
        endpoint(concurrency=8).replies([HELLO] * 8)
    assert time.perf_counter() - began < 5
    server.script.clear()
    assert endpoint().replies([HELLO]) == ['you said : hello']


def test_the_key_is_in_no_log(server, endpoint, caplog):
    caplog.set_level(logging.DEBUG)
    server.script = [Answer(500, None, AT_ONCE), Answer(401, {'error': {'message': KEY}})]
    refused(lambda: endpoint().reply(HELLO))
    assert caplog.text and KEY not in caplog.text and KEY not in repr(vars(endpoint())['parameters'])
