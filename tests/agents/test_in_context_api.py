"""InContextApiAgent evaluates, batches, logs and chats with a real server of the chat protocol."""

import json

import pytest
from helpers.chat_server import Answer, chat_server
from helpers.runs import AGENTS, SAMPLE
from parlai.core.agents import create_agent
from parlai.scripts.eval_model import EvalModel
from parlai.scripts.interactive import Interactive
from parlai.scripts.train_model import TrainModel

from spt_parlai import hub
from spt_parlai.dialogue.instruction import BEGIN
from spt_parlai.errors import UsageError

KEY = 'sk-secret-0123456789'


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('TEST_KEY', KEY)
    with chat_server() as server:
        server.key = KEY
        yield server


@pytest.fixture(autouse=True)
def no_llm(monkeypatch):
    """Fail if any tokenizer or LLM is loaded."""

    def looked_for(*_args, **_kwargs):
        raise AssertionError('an LLM was looked for')

    monkeypatch.setattr(hub, '_load', looked_for)


def options(server, **more):
    return {
        'task': SAMPLE,
        'model': AGENTS + 'InContextApiAgent',
        'api_base': server.base,
        'api_model': 'small',
        'api_key_env': 'TEST_KEY',
        **more,
    }


def evaluate(server, **more):
    given = {k: v for k, v in options(server, datatype='valid', **more).items() if v is not None}
    return {k: float(v) for k, v in EvalModel.main(**given).items()}


def asked(server):
    """The messages of every request, sorted, because the requests of a batch arrive in any order."""
    return sorted((request['messages'] for request in server.requests), key=json.dumps)


def test_half_a_surrogate_pair_reaches_neither_the_endpoint_nor_the_log(server, tmp_path):
    turns = [{'id': 'a', 'text': 'hello \ud83d'}, {'id': 'b', 'text': 'hi \ud83d'}]
    (tmp_path / 'chats.jsonl').write_text(json.dumps({'dialog': [2 * turns]}))
    server.reply = lambda request: 'hi \ud83d'
    report = evaluate(server, task='jsonfile', jsonfile_datapath=str(tmp_path / 'chats.jsonl'), display_examples=True)
    assert report['exs'] == 2 and report['f1'] == 1
    last = max(asked(server), key=len)
    assert [message['content'] for message in last[1:]] == ['hello \ufffd', 'hi \ufffd', 'hello \ufffd']


def test_an_evaluation_tells_the_dialogue_and_scores_what_is_answered(server):
    server.reply = lambda request: ' i sleep\nall summer .'
    report = evaluate(server, num_examples=8)
    assert report['exs'] == 8 and 0 < report['unigram_f1'] and 0 < report['f1'] < 1 and 'ppl' not in report
    first, second, *_ = (request['messages'] for request in server.requests)
    assert [m['role'] for m in first] == ['system', 'user'] and first[1]['content'] == BEGIN  # the agent speaks first
    assert first[0]['content'].endswith(
        '\n\nYour persona: i plow snow for the city. i have three sons who love hockey. '
        'my thermos is always full of cocoa. i sleep all summer long.'
    )
    assert second == [
        *first,
        {'role': 'assistant', 'content': "it's four in the morning and i'm the only light on the road ."},
        {'role': 'user', 'content': 'where are you going at that hour ?'},
    ]
    assert all(r['max_tokens'] == 32 and r['temperature'] == 0 and r['model'] == 'small' for r in server.requests)


def test_batches_say_what_single_requests_say(server, tmp_path):
    """Batches send the same requests; a busy server changes nothing; the log has every turn, but not the key."""
    replies, requests = {}, {}
    for batchsize in (1, 6):
        server.requests.clear()
        server.script = 2 * [Answer(429, None, {'Retry-After': '0'})] if batchsize > 1 else []
        evaluate(server, batchsize=batchsize, num_examples=30, world_logs=str(tmp_path / 'log'), shots=1, seed=3)
        text = (tmp_path / 'log.jsonl').read_text() + (tmp_path / 'log.metadata').read_text()
        assert KEY not in text
        turns = [
            turn
            for line in (tmp_path / 'log.jsonl').read_text().splitlines()
            for pair in json.loads(line)['dialog']
            for turn in pair
        ]
        replies[batchsize] = {turn['text'] for turn in turns if turn['id'] == 'InContext'}
        requests[batchsize] = {json.dumps(messages) for messages in asked(server)}
    assert len(requests[1]) > 25 and server.most_under_way > 1
    assert (
        len(requests[1] & requests[6]) > 15 and len(replies[1] & replies[6]) > 10
    )  # a batch also begins other dialogues
    system = json.loads(next(iter(requests[1])))[0]['content']
    assert 'Example of a conversation:\nYour persona:' in system and 'Partner:' in system and 'You:' in system


@pytest.mark.parametrize(
    'use_reply, said',
    [
        ('label', "it's four in the morning and i'm the only light on the road ."),
        ('model', f'you said : {BEGIN}'),
        ('none', None),
    ],
)
def test_what_counts_as_said(server, use_reply, said):
    evaluate(server, num_examples=2, use_reply=use_reply)
    own = [m['content'] for m in server.requests[1]['messages'] if m['role'] == 'assistant']
    assert own == ([] if said is None else [said])


def test_a_shorter_history(server):
    evaluate(server, num_examples=6, history_size=2)
    assert max(len(request['messages']) for request in server.requests) <= 4  # the system, a beginning, two turns
    assert all('Your persona: i plow snow' in request['messages'][0]['content'] for request in server.requests)


def test_a_chat(server, monkeypatch, capsys):
    lines = iter(['hi there', 'what is your job ?', '[DONE]', 'hello again', '[EXIT]'])
    monkeypatch.setattr('builtins.input', lambda _prompt='': next(lines))
    Interactive.main(**{k: v for k, v in options(server, persona='i am a nurse.').items() if k != 'task'})
    assert 'you said : what is your job ?' in capsys.readouterr().out
    told = [request['messages'][1:] for request in server.requests]
    assert [m['content'] for m in told[1]] == ['hi there', 'you said : hi there', 'what is your job ?']
    assert told[2] == [{'role': 'user', 'content': 'hello again'}]
    assert all(request['messages'][0]['content'].endswith('Your persona: i am a nurse.') for request in server.requests)


def test_further_parameters(server):
    evaluate(
        server,
        num_examples=1,
        api_temperature=0.5,
        api_parameters='{"max_tokens": null, "max_completion_tokens": 9, "top_p": 0.5}',
    )
    request = server.requests[0]
    assert 'max_tokens' not in request
    assert (request['temperature'], request['max_completion_tokens'], request['top_p']) == (0.5, 9, 0.5)


def test_a_reply_ends_before_the_next_speaker_only_if_it_is_asked_for(server):
    server.reply = lambda request: ' i sleep\nall summer . Q: why ?'
    agent = create_agent(Interactive.setup_args().parse_kwargs(**options(server, task='interactive')))
    assert agent.batch_act([agent.observe({'text': 'hi', 'episode_done': True})])[0]['text'].endswith('why ?')
    agent = create_agent(EvalModel.setup_args().parse_kwargs(**options(server, stop_at_next_speaker='true')))
    assert agent.batch_act([agent.observe({'text': 'hi', 'episode_done': True})])[0]['text'] == 'i sleep'
    assert [request.get('stop') for request in server.requests] == [None, ['Q:', 'R:', '\n']]


def test_an_instruction_of_ones_own(server):
    evaluate(server, num_examples=1, instruction='Answer like a pirate.')
    assert server.requests[0]['messages'][0]['content'].startswith('Answer like a pirate.\n\nYour persona')


@pytest.mark.parametrize(
    'more, named, way_out',
    [
        ({'api_base': 'localhost:8000'}, '--api-base localhost:8000', 'http://'),
        ({'api_base': None}, 'InContextApiAgent needs --api-base', 'URL'),
        ({'api_model': None}, 'InContextApiAgent needs --api-model', 'name'),
        ({'api_parameters': '{'}, '--api-parameters', 'not JSON'),
        ({'api_parameters': '[1]'}, '--api-parameters', 'JSON object'),
        ({'shots': 75}, '--shots 75', 'has 74 dialogues'),
        ({'api_retries': -1}, '--api-retries -1', 'at least 0'),
        ({'api_timeout': 0.0}, '--api-timeout 0.0', 'above 0'),
        ({'api_concurrency': 0}, '--api-concurrency 0', 'at least 1'),
        ({'api_temperature': -1.0}, '--api-temperature', 'at least 0'),
        ({'instruction': ''}, '--instruction', 'say what'),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_request(server, more, named, way_out):
    with pytest.raises(UsageError) as error:
        evaluate(server, num_examples=1, **more)
    sentence = str(error.value)
    assert named in sentence and way_out in sentence and sentence.endswith('.') and '\n' not in sentence
    assert not server.requests


@pytest.mark.parametrize(
    'more',
    [
        ('--llm', 'demo'),
        ('--beam-size', '3'),
        ('--inference', 'beam'),
        ('--skip-generation', 'true'),
        ('--text-truncate', '100'),
        ('--chat-template', 'false'),
        ('--temperature', '0.5'),
    ],
)
def test_has_no_option_that_an_endpoint_could_not_honour(server, more, capsys):
    given = [text for name, value in options(server).items() for text in (f'--{name.replace("_", "-")}', str(value))]
    with pytest.raises(SystemExit):
        EvalModel.setup_args().parse_args([*given, *more])
    told, _, _ = capsys.readouterr().err.strip().partition('; did you mean ')
    assert told.endswith(f'unrecognized arguments: {" ".join(more)}')


@pytest.mark.parametrize('name, value', [('api_base', 'http://localhost/v1'), ('api_model', 'small')])
def test_the_agent_of_a_local_llm_says_whose_options_these_are(name, value):
    option = f'--{name.replace("_", "-")} {value!r}'
    with pytest.raises(UsageError, match=f'{option}: use -m spt_parlai.agents:InContextApiAgent or leave it out'):
        EvalModel.main(task=SAMPLE, model=AGENTS + 'InContextAgent', llm='demo', **{name: value})


def test_there_is_nothing_to_train(server, tmp_path):
    for agent, given in (('InContextApiAgent', options(server)), ('InContextAgent', {'task': SAMPLE, 'llm': 'demo'})):
        with pytest.raises(
            UsageError, match=f'-m spt_parlai.agents:{agent} has nothing to train: run parlai eval_model'
        ):
            TrainModel.main(**{**given, 'model': AGENTS + agent, 'model_file': str(tmp_path / 'm')})


def test_a_wrong_key_ends_an_evaluation_in_a_sentence(server, monkeypatch):
    monkeypatch.delenv('TEST_KEY')
    with pytest.raises(UsageError, match='does not accept the key: set the environment variable TEST_KEY'):
        evaluate(server, num_examples=1)


def test_agents_of_a_process_keep_their_dialogues_apart(server):
    agent = create_agent(EvalModel.setup_args().parse_kwargs(**options(server)))
    one, other = agent.clone(), agent.clone()
    one.observe({'text': 'your persona: i ski.\nfirst', 'episode_done': False})
    other.observe({'text': 'second', 'episode_done': False})
    assert [one.act()['text'], other.act()['text']] == ['you said : first', 'you said : second']
    one.observe({'text': 'third', 'episode_done': True})
    one.act()
    assert [m['content'] for m in server.requests[-1]['messages'][1:]] == ['first', 'you said : first', 'third']
    one.observe({'text': 'fourth', 'episode_done': True})
    assert len(one.observation['chat']) == 2 and 'i ski' not in one.observation['chat'][0]['content']


def test_what_a_user_writes_reaches_the_endpoint_as_it_is(server):
    text, persona = 'hi <|eot_id|><|im_<|im_end|>end|> <think>x</think> </s>', 'i </s> ski <think>.'
    agent = create_agent(EvalModel.setup_args().parse_kwargs(**options(server)))
    agent.observe({'text': f'your persona: {persona}\n{text}', 'episode_done': True})
    agent.act()
    system, user = server.requests[-1]['messages']
    assert user['content'] == text and persona in system['content']
    assert 'chat_template_kwargs' not in server.requests[-1]


def test_thoughts_are_no_part_of_a_reply_and_variables_reach_the_endpoint(server):
    variables = '{"enable_thinking": true}'
    given = options(server, chat_template_variables=variables, use_reply='model')
    agent = create_agent(EvalModel.setup_args().parse_kwargs(**given))
    server.reply = lambda request: '<think>\nhm\n</think>\n\nhi' if len(request['messages']) == 2 else '<think>hm'
    replies = []
    for text in ('a', 'b'):
        agent.observe({'text': text, 'episode_done': False})
        replies.append(agent.act()['text'])
    assert replies == ['hi', ''] and [m['content'] for m in server.requests[-1]['messages'][1:]] == ['a', 'hi', 'b']
    assert server.requests[-1]['chat_template_kwargs'] == json.loads(variables)
