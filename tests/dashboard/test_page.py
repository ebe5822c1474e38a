"""The page as one file, and served."""

import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest
from helpers.recorded_run import record
from typer.testing import CliRunner

from spt_parlai.checkpoints import metrics_log
from spt_parlai.cli import app
from spt_parlai.dashboard.page import page
from spt_parlai.errors import UsageError


def data_of(text):
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)
    return json.loads(found)


def test_an_exported_page_holds_everything(tmp_path):
    runs = [record(tmp_path / name / 'model') for name in ('a', 'b')]
    out = tmp_path / 'new' / 'page.html'
    result = CliRunner().invoke(app, ['dashboard', *map(str, runs), '--export', str(out)])
    assert result.exit_code == 0 and 'Wrote' in result.output
    text = out.read_text(encoding='utf-8')
    data = data_of(text)
    assert [run['name'] for run in data['runs']] == ['a', 'b'] and not data['live']
    assert [row['said'] for row in data['replies']['b']] == ['message 1', 'message 2']
    body, *scripts = re.split(r'<script>(.*?)</script>', text, flags=re.DOTALL)
    assert not re.search(r'(?:src|href)="(?!data:)|@import|url\(', body + scripts[1])  # nothing is loaded
    assert 'Apache' in scripts[0] and 'byId' in scripts[2] and '--page:' in body  # every part is in its place


def test_no_text_of_a_run_can_end_the_data(tmp_path):
    model_file = record(tmp_path / 'm', note='</script><script>alert(1)</script>', odd=float('inf'))
    options = data_of(page([model_file], live=False))['runs'][0]['options']
    assert options['note'] == '</script><script>alert(1)</script>' and options['odd'] is None


def test_a_path_without_a_run_is_refused(tmp_path):
    result = CliRunner().invoke(app, ['dashboard', str(tmp_path / 'nothing')])
    assert isinstance(result.exception, UsageError) and 'nothing' in str(result.exception)


def test_a_page_cannot_be_live_without_a_server(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'spt_parlai.dashboard.server', None)
    result = CliRunner().invoke(app, ['dashboard', str(record(tmp_path / 'm'))])
    assert isinstance(result.exception, UsageError) and '--export FILE.html' in str(result.exception)


def test_a_port_that_is_taken_is_named(tmp_path):
    pytest.importorskip('starlette', reason='starlette serves the live page')
    pytest.importorskip('uvicorn', reason='uvicorn serves the live page')
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ['dashboard', str(record(tmp_path / 'm')), '--port', port])
    assert isinstance(result.exception, UsageError) and f'--port {port}' in str(result.exception)


@pytest.fixture
def served(tmp_path):
    """(address, model file) of a page that is served."""
    pytest.importorskip('starlette', reason='starlette serves the live page')
    uvicorn = pytest.importorskip('uvicorn', reason='uvicorn serves the live page')
    from spt_parlai.dashboard.server import application

    model_file = record(tmp_path / 'm', steps=20)
    with socket.create_server(('127.0.0.1', 0)) as listening:
        config = uvicorn.Config(application([model_file], ['127.0.0.1']), log_level='warning')
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={'sockets': [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f'http://127.0.0.1:{listening.getsockname()[1]}', model_file
        server.should_exit = True
        thread.join(10)


def test_the_live_page_follows_the_run(served):
    address, model_file = served
    assert data_of(urllib.request.urlopen(address).read().decode())['live']
    first = urllib.request.urlopen(f'{address}/runs.json')
    assert len(json.load(first)[0]['valid']) == 2
    again = urllib.request.Request(f'{address}/runs.json', headers={'If-None-Match': first.headers['etag']})
    with pytest.raises(urllib.error.HTTPError, match='304'):
        urllib.request.urlopen(again)
    metrics_log.append(model_file, 'valid', {'parleys': 30, 'train_steps': 30, 'ppl': 20.0})
    assert json.load(urllib.request.urlopen(again))[0]['best']['value'] == 20


def test_a_page_from_elsewhere_cannot_ask_for_the_runs(served):
    request = urllib.request.Request(f'{served[0]}/runs.json', headers={'Host': 'attacker.example'})
    with pytest.raises(urllib.error.HTTPError, match='400'):
        urllib.request.urlopen(request)
