"""A command line that cannot be read is reported in one line."""

import pytest
from helpers.runs import AGENT
from parlai.core.script import superscript_main
from parlai.scripts.train_model import TrainModel

import spt_parlai  # noqa: F401  (installs the hooks)


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
