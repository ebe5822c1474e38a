"""A command line that cannot be read is reported in one line."""

import pytest
from helpers.runs import AGENT, SAMPLE
from parlai.core.script import superscript_main
from parlai.scripts.eval_model import EvalModel
from parlai.scripts.interactive import Interactive
from parlai.scripts.train_model import TrainModel

import spt_parlai  # noqa: F401  (installs the hooks)
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


def test_what_a_module_fails_with_is_raised_as_it_is(tmp_path, monkeypatch):
    (tmp_path / 'needs_more.py').write_text('import nowhere_to_be_found')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match='nowhere_to_be_found'):
        EvalModel.main('-m', 'needs_more:Agent')


@pytest.mark.parametrize('end', ['[EXIT]', EOFError, KeyboardInterrupt])
@pytest.mark.parametrize('task', ['interactive', 'integration_tests'])
def test_a_chat_ends_without_a_traceback(task, end, monkeypatch, capsys, tmp_path):
    typed = iter(['hello', '[DONE]', 'again', end])

    def type_next(prompt):
        message = next(typed)
        if not isinstance(message, str):
            raise message
        return message

    monkeypatch.setattr('builtins.input', type_next)
    Interactive.main('-m', 'repeat_query', '-t', task, '-dp', str(tmp_path))
    assert capsys.readouterr().out.count('CHAT DONE') == 2 and next(typed, None) is None
