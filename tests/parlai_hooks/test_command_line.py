"""A command line that cannot be read is reported in one line."""

import pytest
from helpers.runs import AGENT, SAMPLE
from parlai.core.script import superscript_main
from parlai.scripts.display_model import DisplayModel
from parlai.scripts.eval_model import EvalModel
from parlai.scripts.train_model import TrainModel

from spt_parlai.agents import SptAgent
from spt_parlai.errors import UsageError


@pytest.mark.parametrize('parse', [TrainModel.main, lambda *args: superscript_main(['train_model', *args])])
@pytest.mark.parametrize(
    'given, told',
    [
        (['--num_promts', '3'], 'unrecognized arguments: --num-promts 3; did you mean --num-prompts?'),
        (['--num-promts=3', '--learnin-rate', '1'], '; did you mean --num-prompts, --learningrate?'),
        (['--quite-another', '3'], 'unrecognized arguments: --quite-another 3\n'),
        (['--num-prompts', 'three'], "argument --num-prompts: invalid int value: 'three'"),
    ],
)
def test_only_the_error_is_printed(parse, given, told, capsys):
    with pytest.raises(SystemExit) as end:
        parse('-m', AGENT, *given)
    shown = capsys.readouterr()
    assert end.value.code == 2 and told in shown.err
    assert shown.err.startswith('Parse Error: ') and shown.err.count('\n') == 1 and '--help' not in shown.out


@pytest.mark.parametrize('parse', [TrainModel.main, lambda *args: superscript_main(['train_model', *args])])
@pytest.mark.parametrize('agent, own', [(AGENT, True), ('repeat_label', False)])
def test_help_begins_with_the_agents_own_options(parse, agent, own, capsys):
    with pytest.raises(SystemExit):
        parse('-m', agent, '--help')
    shown = capsys.readouterr().out
    titles = [line for line in shown.split('\n') if line.endswith(':') and not line.startswith(' ')]
    assert 'Main ParlAI Arguments:' in titles and len(set(titles) - {'options:'}) == len(titles) - titles.count(
        'options:'
    )
    assert (titles.index('Main ParlAI Arguments:') > titles.index('Selective Prompt Tuning:')) if own else titles[0]
    assert (titles[0] == 'LLM:' and shown.index('LLM:') < 400) is own


@pytest.mark.parametrize('parse', [EvalModel.main, lambda *args: superscript_main(['eval_model', *args])])
@pytest.mark.parametrize(
    'given, told',
    [
        (['-m', 'spt_parlai.agents:SptAgnt'], 'such agent; did you mean spt_parlai.agents:SptAgent?'),
        (['-m', 'spt_parlai.agent:SptAgent'], 'such agent; did you mean spt_parlai.agents:SptAgent?'),
        (['-m', 'repeat_lable'], 'such agent; did you mean repeat_label?'),
        (['-m', AGENT, '-t', 'convia2'], 'such task; did you mean convai2?'),
        (['-m', AGENT, '-t', 'convai2:Slef'], 'such task; did you mean convai2:Self?'),
        (['-m', AGENT, '-t', 'spt_parlai.tasks.sampel'], 'such task; did you mean spt_parlai.tasks.sample?'),
        (['-o', 'quite/another'], 'such file or preset.'),
    ],
)
def test_a_name_that_does_not_exist(parse, given, told):
    with pytest.raises(UsageError) as error:
        parse(*given)
    assert str(error.value) == f'{given[-2]} {given[-1]}: there is no {told}'


def test_a_model_file_that_does_not_exist(tmp_path):
    (tmp_path / 'model.opt').write_text('{}')
    with pytest.raises(
        UsageError, match=f'^-mf {tmp_path}/modle: there is no such model file; did you mean {tmp_path}/m'
    ):
        EvalModel.main('-mf', f'{tmp_path}/modle', '-t', SAMPLE)


def test_a_missing_agent():
    for kind in (UsageError, RuntimeError):
        with pytest.raises(kind, match='^-m is missing: name an agent, such as -m spt_parlai.agents:SptAgent, or'):
            EvalModel.main('-t', SAMPLE)


@pytest.mark.parametrize('script', [TrainModel, EvalModel, DisplayModel])
def test_a_missing_task(script, monkeypatch):
    monkeypatch.setattr(SptAgent, '__init__', lambda *_: pytest.fail('builds the agent'))
    for kind in (UsageError, RuntimeError):
        with pytest.raises(kind, match='^-t is missing: name a task, such as -t convai2:self or -t spt_parlai.tasks'):
            script.main('-m', AGENT)


@pytest.mark.parametrize(
    'content, reason',
    [
        (b'{', 'line 1: Expecting property name'),
        (b'{"task": "x",}', 'line 1: '),
        (b'1', 'no JSON object'),
        (b'\xff\xfe{', 'no JSON object'),
        (b'', 'line 1: Expecting value'),
    ],
)
def test_a_file_of_options_that_cannot_be_read(tmp_path, content, reason):
    for name in ('preset.opt', 'model.opt'):
        (tmp_path / name).write_bytes(content)
    for name, words in (('preset.opt', ['-o', f'{tmp_path}/preset.opt']), ('model.opt', ['-mf', f'{tmp_path}/model'])):
        with pytest.raises(UsageError) as error:
            EvalModel.main('-t', SAMPLE, *words)
        assert str(error.value).startswith(f'{tmp_path}/{name} holds no options ({reason}')


def test_what_a_module_fails_with_is_raised_as_it_is(tmp_path, monkeypatch):
    (tmp_path / 'needs_more.py').write_text('import nowhere_to_be_found')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match='nowhere_to_be_found'):
        EvalModel.main('-m', 'needs_more:Agent')
