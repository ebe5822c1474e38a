"""Models that are shared: pushed to a hub or written to a folder, with a card, and loaded again by name."""

import json

import pytest
from helpers.fake_hub import running_hub
from helpers.runs import evaluate, train
from typer.testing import CliRunner

import spt_parlai
from spt_parlai import hub, trained_models
from spt_parlai.cli import app
from spt_parlai.errors import UsageError
from spt_parlai.trained_models import on_the_hub


def spt(*words):
    done = CliRunner().invoke(app, list(map(str, words)))
    if isinstance(done.exception, UsageError):
        raise done.exception
    return done.output


@pytest.fixture(scope='module')
def model_file(tiny_llms, tmp_path_factory):
    path = tmp_path_factory.mktemp('shared') / 'm'
    train(path, tiny_llms.opt, max_train_steps=1)
    return path


@pytest.fixture
def the_hub(tmp_path, monkeypatch):
    """A hub of this machine, with an empty cache."""
    with running_hub() as (fake, address):
        for name, value in {
            'ENDPOINT': address,
            'HUGGINGFACE_CO_URL_TEMPLATE': f'{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}',
            'HF_URL_HOSTS': frozenset({'127.0.0.1'}),
            'HF_HUB_CACHE': str(tmp_path / 'cache'),
            'HF_HUB_OFFLINE': False,
        }.items():
            monkeypatch.setattr(f'huggingface_hub.constants.{name}', value)
        monkeypatch.setenv('HF_TOKEN', 'hf_test')
        cached = (hub.hub_answers, on_the_hub.download)
        for asked in cached:
            asked.cache_clear()
        yield fake
    for asked in cached:
        asked.cache_clear()


def test_a_model_is_pushed_and_loaded_by_its_name(model_file, the_hub, tmp_path):
    report = tmp_path / 'report.json'
    evaluated = evaluate(model_file, num_examples=8, report_filename=str(report))
    assert 'load it with -mf hf:me/persona' in spt('push', model_file, 'me/persona', '--report', report)
    files = the_hub.repos['me/persona']
    assert set(files) == {'README.md', 'model', 'model.opt', 'model.dict'}
    card = files['README.md'].decode()
    assert card.startswith('---\n') and 'library_name: spt_parlai' in card and 'spt_parlai.load(' in card
    assert f'| perplexity of a token | {evaluated["ppl"]:.4g} |' in card and '| num_prompts | 3 |' in card
    assert str(tmp_path) not in files['model.opt'].decode()
    again = evaluate('hf:me/persona', num_examples=8)
    assert {k: v for k, v in again.items() if k != 'exps' and not k.endswith('ps')} == {
        k: v for k, v in evaluated.items() if k != 'exps' and not k.endswith('ps')
    }
    with spt_parlai.load('hf:me/persona') as model, spt_parlai.load(str(model_file)) as own:
        assert model.chat('hi').scores == own.chat('hi').scores
    assert 'num_prompts' in spt('info', 'hf:me/persona')


def test_a_model_that_was_loaded_once_needs_no_hub(model_file, the_hub, monkeypatch):
    spt('push', model_file, 'me/persona')
    path = trained_models.resolve('hf:me/persona')
    assert trained_models.name_of(path) == 'hf:me/persona'
    on_the_hub.download.cache_clear()
    monkeypatch.setattr(hub, 'hub_answers', lambda: False)
    assert trained_models.resolve('hf:me/persona') == path
    with pytest.raises(UsageError, match=r'^hf:me/other is not in the local Hugging Face cache'):
        trained_models.resolve('hf:me/other')


def test_a_model_of_the_hub_is_not_trained_itself(model_file, the_hub, tiny_llms, tmp_path):
    spt('push', model_file, 'me/persona')
    with pytest.raises(UsageError, match=r'^-mf hf:me/persona: .* give --init-model hf:me/persona -mf FILE'):
        train('hf:me/persona', tiny_llms.opt, max_train_steps=1)
    train(tmp_path / 'new', tiny_llms.opt, max_train_steps=1, init_model='hf:me/persona')


@pytest.mark.parametrize(
    'name, told',
    [
        ('hf:persona', '^hf:persona: give hf:OWNER/NAME'),
        ('hf:me/no', '^hf:me/no: there is no such repository for you'),
        ('hf:me/persona@other', '^hf:me/persona@other: the repository has no revision other'),
    ],
)
def test_names_that_cannot_be_loaded(name, told, the_hub):
    the_hub.repos['me/persona'] = {}
    with pytest.raises(UsageError, match=told):
        trained_models.resolve(name)


@pytest.mark.parametrize(
    'files, told',
    [
        ({'config.json': b'{}'}, 'holds no model of this package'),
        ({'model': b'x', 'model.opt': b'['}, 'holds no model of this package'),
        ({'model.opt': b'{"model": "spt_parlai.agents:SptAgent"}'}, 'holds no model of this package'),
        (
            {'model': b'x', 'model.opt': b'{"model": "os:system"}'},
            'names the agent os:system, ',
        ),
    ],
)
def test_repositories_that_hold_something_else(files, told, the_hub):
    the_hub.repos['me/persona'] = files
    with pytest.raises(UsageError, match=told):
        trained_models.resolve('hf:me/persona')


def test_what_the_hub_refuses(model_file, the_hub):
    the_hub.refuse = True
    with pytest.raises(UsageError, match=r'^me/persona could not be written .*hf auth login'):
        spt('push', model_file, 'me/persona')


def test_a_folder_is_the_way_without_a_network(model_file, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, 'hub_answers', lambda: False)
    with pytest.raises(UsageError, match='cannot be reached; write a folder with --folder'):
        spt('push', model_file, 'me/persona')
    folder = tmp_path / 'shared'
    assert f'-mf {folder / "model"}' in spt('push', model_file, '--folder', folder)
    assert evaluate(folder / 'model', num_examples=8)['exs'] == 8
    assert f'spt_parlai.load({str(folder / "model")!r})' in (folder / 'README.md').read_text()
    with pytest.raises(UsageError, match='exists already'):
        spt('push', model_file, '--folder', folder)
    spt('push', model_file, '--folder', folder, '--force')


def test_a_card_beside_the_model_file_is_kept(tmp_path):
    spt('push', 'spt:smollm2-pt', '--folder', tmp_path / 'pt')
    own = trained_models.FOLDER / 'smollm2-pt' / 'README.md'
    assert (tmp_path / 'pt' / 'README.md').read_text() == own.read_text()


@pytest.mark.parametrize('words', [(), ('me/persona', '--folder', 'x')])
def test_either_a_repository_or_a_folder(words, model_file):
    with pytest.raises(UsageError, match='give a repository, OWNER/NAME, or --folder'):
        spt('push', model_file, *words)


@pytest.mark.parametrize('content', ['{', '[]', '{"report": 3}'])
def test_a_report_that_is_none(content, model_file, tmp_path):
    (tmp_path / 'report').write_text(content)
    with pytest.raises(UsageError, match='is no report'):
        spt('push', model_file, '--folder', tmp_path / 'out', '--report', tmp_path / 'report')


def test_adapters_have_a_card(model_file, tmp_path):
    pytest.importorskip('peft')
    spt('export-peft', model_file, '--out', tmp_path / 'adapters')
    for k in range(3):
        card = (tmp_path / 'adapters' / f'prompt_{k}' / 'README.md').read_text()
        assert 'library_name: peft' in card and f'# Soft prompt {k} around ' in card
        assert json.loads((tmp_path / 'adapters' / f'prompt_{k}' / 'adapter_config.json').read_text())
