"""The README's commands are commands: targets that exist, subcommands that exist, options that parse."""

import json
import re
import shlex
from pathlib import Path

import pytest
from parlai.core.script import SCRIPT_REGISTRY, setup_script_registry
from typer.testing import CliRunner

from spt_parlai.cli import app
from spt_parlai.metrics.registry import DEFINITIONS

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def commands(program):
    """Indented lines that start with `program`, without their comments."""
    lines = re.findall(rf'^    ({program} .*)$', README, flags=re.MULTILINE)
    assert lines
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize('command', commands('make'), ids=' '.join)
def test_make_targets_exist(command):
    assert re.search(rf'^{command[1]}:', (ROOT / 'Makefile').read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize('command', commands('parlai'), ids=' '.join)
def test_parlai_commands_parse(command, monkeypatch, tmp_path):
    setup_script_registry()
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'opt_presets').symlink_to(ROOT / 'opt_presets')
    (tmp_path / 'runs' / 'opt125m').mkdir(parents=True)  # as the first command leaves it
    (tmp_path / 'runs' / 'opt125m' / 'model.opt').write_text('{"model": "spt_parlai.agents:SptAgent"}')
    parser = SCRIPT_REGISTRY[command[1]].klass.setup_args()
    opt = parser.parse_args(command[2:])
    given = dict(zip(command[2::2], command[3::2]))
    assert opt.get('model_file') == given.get('-mf')
    if '-o' in given:
        assert opt['model'] == json.loads(Path(given['-o']).read_text())['model'] and opt['model'].startswith(
            'spt_parlai.agents:'
        )


@pytest.mark.parametrize('command', commands('torchrun'), ids=' '.join)
def test_torchrun_commands_parse(command, monkeypatch, tmp_path):
    from torch.distributed.run import get_args_parser

    arguments = get_args_parser().parse_args(command[1:])
    assert arguments.module and arguments.training_script == 'spt_parlai.torchrun'
    test_parlai_commands_parse(['parlai', *arguments.training_script_args], monkeypatch, tmp_path)


@pytest.mark.parametrize('command', commands('spt'), ids=' '.join)
def test_spt_commands_exist(command):
    words = [w for w in command[1:] if not w.startswith('-') and not w.isupper()]
    shown = CliRunner().invoke(app, [*words, '--help']).output
    assert all(option in shown for option in command if option.startswith('--')), shown


def test_files_and_folders_it_names_exist():
    for name in re.findall(r'`((?:spt_parlai|projects|opt_presets|tests)/[\w./]*)`', README):
        assert (ROOT / name).exists(), name


def test_every_option_of_the_method_is_in_its_table():
    from parlai.core.params import ParlaiParser

    from spt_parlai.options.groups import GROUPS

    parser = ParlaiParser(False, False)
    for group in GROUPS:
        group.add_to(parser)
    for action in parser._actions:
        for option in action.option_strings:
            if option.startswith('--') and option not in ('--help', '--helpall', '--h'):
                assert f'`{option}`' in README, option


def test_it_defines_every_metric_of_the_paper():
    named = {
        name
        for line in README.splitlines()
        if line.startswith('| `')
        for name in re.findall(r'`([^`]*)`', line.split(' | ')[0])
    }
    between = {f'{name}_{n}' for name in ('sacrebleu', 'persona_bleu') for n in (2, 3, 4)}  # written `X_1` … `_4`
    assert between <= set(DEFINITIONS) and set(DEFINITIONS) - between <= named
