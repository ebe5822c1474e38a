"""OpenAI's protocol: the official client and our own agent talk to the server, and no request stops it."""

import http.client
import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest
from helpers.serving import serving
from parlai.core.agents import create_agent
from parlai.scripts.eval_model import EvalModel

from spt_parlai.metrics.ranking import consensus, persona_overlap
from spt_parlai.server.ratings import Ratings

openai = pytest.importorskip('openai')
server = pytest.importorskip('spt_parlai.server.app')

MESSAGES = [
    {'role': 'system', 'content': 'your persona: i like tea.\ni have a dog.'},
    {'role': 'user', 'content': 'hello ! how are you ?'},
]
KEY = 'a secret'


@pytest.fixture(scope='module')
def address(model, tmp_path_factory):
    ratings = Ratings(tmp_path_factory.mktemp('ratings') / 'new' / 'ratings.jsonl')
    with serving(server.application([model], hosts=['127.0.0.1'], ratings=ratings)) as address:
        yield address


@pytest.fixture(scope='module')
def client(address):
    return openai.OpenAI(base_url=f'{address}/v1', api_key='none', max_retries=0, timeout=20)


def complete(client, **more):
    return client.chat.completions.create(**{'model': 'tiny/model', 'messages': MESSAGES, **more})


def test_the_models_are_listed(client):
    (model,) = client.models.list().data
    assert model.id == 'tiny/model' and model.spt_num_prompts == 3 and model.spt_agent == 'SptAgent'


def test_a_reply_comes_with_its_prompt_and_all_scores(client):
    answer = complete(client)
    (choice,) = answer.choices
    assert choice.message.role == 'assistant' and choice.message.content
    assert len(answer.spt_scores) == 3 and answer.spt_prompt == choice.spt_prompt
    assert answer.spt_prompt == max(range(3), key=answer.spt_scores.__getitem__)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize('more', [{}, {'extra_body': {'spt_prompt': 'all'}}], ids=['selected', 'all'])
def test_a_stream_gives_the_same(client, more):
    whole = complete(client, **more)
    texts, reasons = {}, {}
    chunks = list(complete(client, stream=True, stream_options={'include_usage': True}, **more))
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, '') + (choice.delta.content or '')
            reasons[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert chunks[0].spt_scores == whole.spt_scores and chunks[0].spt_prompt == whole.spt_prompt
    assert [choice.spt_prompt for choice in chunks[0].choices] == [choice.spt_prompt for choice in whole.choices]
    assert chunks[-1].usage == whole.usage and len(chunks) > 4


def test_parameters_reach_the_search(client):
    assert complete(client, max_tokens=2).usage.completion_tokens == 2
    assert complete(client, max_completion_tokens=2).choices[0].finish_reason == 'length'
    assert len({choice.message.content for choice in complete(client, n=6, temperature=1.5).choices}) > 1
    nearly_greedy = complete(client, n=2, temperature=1.5, top_p=0.01)
    assert {choice.message.content for choice in nearly_greedy.choices} == {complete(client).choices[0].message.content}
    assert complete(client, extra_body={'spt_prompt': 1}).choices[0].spt_prompt == 1
    text = complete(client).choices[0].message.content
    assert complete(client, stop=text[1:3]).choices[0].message.content == text.partition(text[1:3])[0].rstrip()


@pytest.mark.parametrize('rank_by', ['mbr', 'persona'])
def test_candidates_are_ranked(client, rank_by):
    asked = {'n': 3, 'temperature': 1.5, 'extra_body': {'spt_prompt': 'all', 'spt_rank_by': rank_by}}
    answer = complete(client, **asked)
    texts = [choice.message.content for choice in answer.choices]
    persona = 'i like tea. i have a dog.'
    expected = consensus(texts) if rank_by == 'mbr' else [persona_overlap(text, persona) for text in texts]
    assert len(texts) == 9 and answer.spt_ranking == pytest.approx(expected, abs=1e-3)
    assert len(list(complete(client, stream=True, **asked))[-1].spt_ranking) == 9


def test_persona_and_history_reach_the_model(client, model, monkeypatch):
    contexts, context = [], model.engine._context
    monkeypatch.setattr(model.engine, '_context', lambda request: (contexts.append(request), context(request))[1])
    parts = [{'type': 'text', 'text': 'do you '}, {'type': 'text', 'text': 'have pets ?'}]
    more = [{'role': 'assistant', 'content': ' fine  . '}, {'role': 'user', 'content': parts}]
    complete(client, messages=[*MESSAGES, *more])
    (request,) = contexts
    assert request.persona == ('i like tea.', 'i have a dog.')
    assert [(turn.text, turn.own) for turn in request.turns] == [
        ('hello ! how are you ?', False),
        ('fine .', True),
        ('do you have pets ?', False),
    ]


@pytest.mark.parametrize(
    'more, named',
    [
        ({'model': 'other'}, 'tiny/model'),
        ({'messages': []}, 'messages'),
        ({'messages': [{'role': 'assistant', 'content': 'x'}]}, 'the last one'),
        ({'messages': [{'role': 'tool', 'content': 'x'}]}, r'messages\[0\]'),
        ({'messages': [{'role': 'user', 'content': 3}]}, r'messages\[0\]'),
        ({'messages': [{'role': 'user', 'content': 'x' * 30_000}]}, '20000'),
        ({'temperature': 3}, 'temperature 3'),
        ({'temperature': float('nan')}, 'temperature nan'),
        ({'top_p': 0}, 'top_p 0'),
        ({'max_tokens': 0}, 'max_tokens 0'),
        ({'max_tokens': 1.5}, 'max_tokens 1.5'),
        ({'n': 17}, 'n 17'),
        ({'n': True}, 'n True'),
        ({'n': 6, 'spt_prompt': 'all'}, '18 replies'),
        ({'spt_prompt': 3}, 'from 0 to 2'),
        ({'spt_prompt': 'best'}, 'spt_prompt'),
        ({'spt_rank_by': 'luck'}, 'mbr or persona'),
        ({'stop': ['']}, 'stop'),
        ({'stream_options': 3, 'stop': {}}, 'stop'),
    ],
)
def test_a_wrong_field_is_named(address, more, named):
    status, error = posted(address, json.dumps({'messages': MESSAGES, **more}).encode())
    assert status in (400, 404)
    assert re.search(named, error['message']), error


def posted(address, body, path='/v1/chat/completions', **headers):
    request = urllib.request.Request(address + path, body, {'Content-Type': 'application/json', **headers})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)['error']


@pytest.mark.parametrize(
    'status, body, headers',
    [
        (400, b'', {}),
        (400, b'{"messages": ', {}),
        (400, b'\xff\xfe', {}),
        (400, b'[1]', {}),
        (400, b'[' * 100_000, {}),
        (413, b'"' + b'x' * 1_100_000 + b'"', {}),
        (415, b'{}', {'Content-Type': 'text/plain'}),
    ],
    ids=['empty', 'cut', 'no text', 'no object', 'deep', 'large', 'type'],
)
def test_a_broken_request_gets_an_error_in_json(address, client, status, body, headers):
    assert posted(address, body, **headers)[0] == status
    assert complete(client, max_tokens=2)


@pytest.mark.parametrize('path, status', [('/nothing', 404), ('/v1/chat/completions', 405), ('/page/../app.py', 404)])
def test_other_addresses_get_an_error_in_json(address, path, status):
    host = urlsplit(address)
    connection = http.client.HTTPConnection(host.hostname, host.port, timeout=20)
    connection.request('GET', path)
    answer = connection.getresponse()
    assert answer.status == status and path in json.load(answer)['error']['message']


def test_a_client_that_is_slow_to_send_is_not_waited_for(address, monkeypatch):
    monkeypatch.setattr(server, 'SECONDS_TO_SEND', 0.2)
    host = urlsplit(address)
    with socket.create_connection((host.hostname, host.port), timeout=20) as connection:
        head = b'POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n'
        connection.sendall(head + b'Content-Length: 100\r\n\r\n{')
        assert connection.recv(1000).startswith(b'HTTP/1.1 408')


def test_a_page_from_elsewhere_cannot_ask(address):
    request = urllib.request.Request(f'{address}/v1/models', headers={'Host': 'attacker.example'})
    with pytest.raises(urllib.error.HTTPError, match='400'):
        urllib.request.urlopen(request)


def test_a_full_queue_and_a_reply_that_takes_too_long_are_told(client, model, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(model.engine, 'most_waiting', 0)
        with pytest.raises(openai.RateLimitError, match='try again'):
            complete(client)
    monkeypatch.setattr('spt_parlai.server.protocol.SECONDS', 0.0)
    with pytest.raises(openai.InternalServerError, match='no reply within') as error:
        complete(client)
    assert error.value.status_code == 504


def test_a_failure_in_the_middle_of_a_stream_is_told(client, model, monkeypatch):
    decoder = model.engine.model.decoder

    def fail_later(so_far, *state):
        if so_far.shape[1] == 4:
            raise RuntimeError('out of paper')
        return decoder(so_far, *state)

    with monkeypatch.context() as patch:
        patch.setattr(model.engine.model, 'decoder', fail_later)
        with pytest.raises(openai.APIError, match='out of paper'):
            list(complete(client, stream=True))
        with pytest.raises(openai.InternalServerError, match='out of paper'):
            complete(client)
    assert complete(client)


@pytest.mark.parametrize('stream', [True, False])
def test_a_client_that_leaves_ends_its_reply(address, client, model, monkeypatch, stream):
    jobs, submit, decoder = [], model.engine.submit, model.engine.model.decoder
    monkeypatch.setattr(server, '_LOOK', 0.05)
    monkeypatch.setattr(model.engine, 'submit', lambda *a: (jobs.append(submit(*a)), jobs[-1])[1])
    monkeypatch.setattr(model.engine.model, 'decoder', lambda *a: (time.sleep(0.05), decoder(*a))[1])
    host = urlsplit(address)
    connection = http.client.HTTPConnection(host.hostname, host.port, timeout=20)
    body = json.dumps({'messages': MESSAGES, 'stream': stream, 'max_tokens': 1000})
    connection.request('POST', '/v1/chat/completions', body, {'Content-Type': 'application/json'})
    if stream:
        connection.getresponse().readline()
    else:
        while not jobs:
            time.sleep(0.01)
    connection.close()
    if connection.sock:
        connection.sock.close()
    for _ in range(200):
        if jobs[0].cancelled:
            break
        time.sleep(0.02)
    assert jobs[0].cancelled and not jobs[0].over


def test_32_sessions_at_once_each_get_their_own_reply(client):
    def messages(i):
        return [{'role': 'user', 'content': f'i am number {i} . who are you ?'}]

    expected = [complete(client, messages=messages(i)).choices[0].message.content for i in range(32)]
    found = [None] * 32

    def ask(i):
        chunks = complete(client, messages=messages(i), stream=True)
        found[i] = ''.join(chunk.choices[0].delta.content or '' for chunk in chunks)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected and len({*expected}) > 4


def test_our_own_agent_talks_to_it(address, client):
    opt = EvalModel.setup_args().parse_kwargs(
        task='spt_parlai.tasks.sample',
        model='spt_parlai.agents:InContextApiAgent',
        api_base=f'{address}/v1',
        api_model='tiny/model',
        max_new_tokens=5,
    )
    agent = create_agent(opt)
    agent.observe({'id': 'you', 'text': 'your persona: i like tea.\nhello !', 'episode_done': False})
    reply = agent.act()
    messages = agent.observation['chat']
    assert reply['text'] == ' '.join(
        complete(client, messages=messages, max_tokens=5).choices[0].message.content.split()
    )


def test_a_server_with_a_token_asks_for_it(model):
    with serving(server.application([model], token=KEY)) as address:
        client = openai.OpenAI(base_url=f'{address}/v1', api_key=KEY, max_retries=0)
        assert client.models.list().data
        with pytest.raises(openai.AuthenticationError, match='Authorization'):
            client.with_options(api_key='wrong').models.list()
        for path in ('/v1/models', '/personas'):
            with pytest.raises(urllib.error.HTTPError, match='401'):
                urllib.request.urlopen(address + path)
        assert urllib.request.urlopen(f'{address}/').status == 200  # the page has no secrets, and asks for the token


def test_ratings_are_appended(model, tmp_path):
    file = tmp_path / 'new' / 'ratings.jsonl'
    with serving(server.application([model], ratings=Ratings(file))) as address:
        for text in ('a', 'é \ud800'):
            assert posted(address, json.dumps({'reply': text, 'rating': 1}).encode(), '/ratings')[0] == 201
        assert posted(address, b'3', '/ratings')[0] == 400
    first, second = map(json.loads, file.read_text().splitlines())
    assert first['reply'] == 'a' and first['rating'] == 1 and first['time'] and second['reply'] == 'é \ufffd'


def test_without_the_page_only_the_protocol_is_served(model):
    with serving(server.application([model], page=False)) as address:
        assert json.load(urllib.request.urlopen(f'{address}/v1/models'))['data']
        with pytest.raises(urllib.error.HTTPError, match='404'):
            urllib.request.urlopen(f'{address}/')
