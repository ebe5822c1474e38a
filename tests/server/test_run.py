"""`spt chat` and `spt serve`, from their options to the application."""

import json
import re
import socket
import sys
import urllib.request

import pytest
from helpers.serving import serving
from typer.testing import CliRunner

from spt_parlai.cli import app
from spt_parlai.errors import UsageError

uvicorn = pytest.importorskip('uvicorn')
run = pytest.importorskip('spt_parlai.server.run')


@pytest.fixture(scope='module')
def model_file(spt_agent, tmp_path_factory):
    file = tmp_path_factory.mktemp('run') / 'model'
    spt_agent.save(str(file))
    return str(file)


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Run a command without serving anything; returns (the application, what the command prints)."""
    monkeypatch.chdir(tmp_path)
    apps = []
    monkeypatch.setattr(uvicorn.Server, 'run', lambda self, sockets: apps.append(self.config.app))

    def start(*words):
        result = CliRunner().invoke(app, [*words, '--port', '0'])
        if result.exception:
            raise result.exception
        return apps.pop(), result.output

    return start


def get(address, path, **headers):
    return json.load(urllib.request.urlopen(urllib.request.Request(address + path, headers=headers)))


def test_chat_serves_the_page_two_models_and_personas(started, model_file, tmp_path):
    (tmp_path / 'p.txt').write_text('1 your persona: i like tea.\n2 hello\thi\n1 your persona: i am a nurse.\n2 a\tb\n')
    served, printed = started('chat', model_file, '--compare', model_file, '--personas', 'p.txt')
    assert re.search(r'http://127\.0\.0\.1:\d+/\n', printed) and '/v1' in printed
    assert (tmp_path / 'ratings.jsonl').exists()
    routes = {route.path for route in served.routes}
    assert {'/', '/personas', '/ratings', '/v1/models', '/v1/chat/completions'} <= routes


def test_an_address_that_others_reach_has_a_token(started, model_file):
    _, printed = started('serve', model_file, '--host', '0.0.0.0')
    assert re.search(r'with the key \S{20,}\.', printed) and 'Chat with' not in printed
    assert 'key mine.' in started('serve', model_file, '--token', 'mine')[1]
    assert 'key' not in started('serve', model_file)[1]


@pytest.mark.parametrize(
    'words, named',
    [
        (['chat', 'nothing'], 'nothing: there is no such model file'),
        (['chat', 'MODEL', '--personas', 'missing.txt'], '--personas missing.txt'),
        (['chat', 'MODEL', '--personas', 'empty.txt'], '--personas empty.txt: it has no persona'),
        (['chat', 'MODEL', '--ratings', '/proc/none/r.jsonl'], '--ratings /proc/none/r.jsonl'),
        (['serve', 'MODEL', '--host', '192.0.2.1'], '--host 192.0.2.1'),
    ],
)
def test_what_cannot_work_is_one_sentence(started, model_file, tmp_path, words, named):
    (tmp_path / 'empty.txt').write_text('1 hello\thi\n')
    with pytest.raises(UsageError) as error:
        started(*[model_file if word == 'MODEL' else word for word in words])
    assert named in str(error.value) and '\n' not in str(error.value)


def test_a_port_that_is_taken_is_named(model_file):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ['serve', model_file, '--port', port])
    assert isinstance(result.exception, UsageError) and f'--port {port}' in str(result.exception)


def test_without_its_libraries_the_command_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'spt_parlai.server.run', None)
    result = CliRunner().invoke(app, ['chat', 'm'])
    assert isinstance(result.exception, UsageError) and "'spt_parlai[chat]'" in str(result.exception)


def test_two_models_answer_under_their_own_names(model_file, spt_agent):
    from spt_parlai.server.app import application
    from spt_parlai.server.models import open_model

    models = [open_model(model_file), open_model(model_file, 'other')]
    with serving(application(models, personas=[['i like tea.']])) as address:
        names = [model['id'] for model in get(address, '/v1/models')['data']]
        assert names[0].endswith('/model') and names[1] == 'other'
        assert get(address, '/personas') == [['i like tea.']]
    for model in models:
        model.engine.close()
