"""The commands of every README work: targets, subcommands, scripts and options exist, and the files that it names."""

import json
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from helpers.option_groups import GROUPS
from parlai.core.script import SCRIPT_REGISTRY, setup_script_registry
from typer.testing import CliRunner

from spt_parlai import trained_models
from spt_parlai.cli import app
from spt_parlai.errors import flag
from spt_parlai.metrics.registry import DEFINITIONS
from spt_parlai.options import groups

ROOT = Path(__file__).parents[1]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text(encoding='utf-8')
    for page in sorted(
        [
            ROOT / 'README.md',
            ROOT / 'CONTRIBUTING.md',
            *(page for room in ('spt_parlai', 'projects') for page in (ROOT / room).rglob('README.md')),
        ]
    )
}
AGENTS, METRICS = (f'spt_parlai/{room}/README.md' for room in ('agents', 'metrics'))


def commands(program):
    """The indented lines of all pages that start with `program`, without their comments, each with its page's name."""
    found = [
        pytest.param(shlex.split(line, comments=True), id=f'{page}: {line}')
        for page, text in PAGES.items()
        for line in re.findall(rf'^    ({program} .*)$', text, flags=re.MULTILINE)
    ]
    assert found
    return found


def test_every_page_is_read():
    assert {'README.md', 'CONTRIBUTING.md', AGENTS, METRICS} < PAGES.keys() and len(PAGES) >= 10


def test_the_first_page_is_short():
    assert len(PAGES['README.md'].encode()) <= 10_000


@pytest.mark.parametrize('command', commands('make'))
def test_make_targets_exist(command):
    assert re.search(rf'^{command[1]}:', (ROOT / 'Makefile').read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize('command', commands('parlai'))
def test_parlai_commands_parse(command, monkeypatch, tmp_path):
    setup_script_registry()
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'opt_presets').symlink_to(ROOT / 'opt_presets')
    (tmp_path / 'runs' / 'opt125m').mkdir(parents=True)  # as the first command leaves it
    (tmp_path / 'runs' / 'opt125m' / 'model.opt').write_text('{"model": "spt_parlai.agents:SptAgent"}')
    parser = SCRIPT_REGISTRY[command[1]].klass.setup_args()
    opt = parser.parse_args(command[2:])
    given = dict(zip(command[2::2], command[3::2], strict=True))
    assert opt.get('model_file') == (trained_models.resolve(given['-mf']) if '-mf' in given else None)
    if '-o' in given:
        assert opt['model'] == json.loads(Path(given['-o']).read_text())['model'] and opt['model'].startswith(
            'spt_parlai.agents:'
        )


@pytest.mark.parametrize('command', commands('torchrun'))
def test_torchrun_commands_parse(command, monkeypatch, tmp_path):
    from torch.distributed.run import get_args_parser

    arguments = get_args_parser().parse_args(command[1:])
    assert arguments.module and arguments.training_script == 'spt_parlai.torchrun'
    test_parlai_commands_parse(['parlai', *arguments.training_script_args], monkeypatch, tmp_path)


@pytest.mark.parametrize('command', commands('srun python'))
def test_slurm_commands_parse(command, monkeypatch, tmp_path):
    from importlib import import_module

    start = command.index('-m') + 1
    script = import_module(command[start])
    opt = script.setup_args().parse_args(command[start + 1 :])
    assert opt['model'] == 'spt_parlai.agents:SptAgent' and opt['model_file']


@pytest.mark.parametrize('command', commands('spt'))
def test_spt_commands_exist(command, monkeypatch, tmp_path):
    if command[1] == 'parlai':
        return test_parlai_commands_parse(command[1:], monkeypatch, tmp_path)
    words = [w for w in command[1:] if not w.startswith('-') and not w.isupper()]
    shown = CliRunner().invoke(app, [*words, '--help']).output
    assert all(option in shown for option in command if option.startswith('--')), shown


@pytest.mark.parametrize('command', commands('python') + commands('PYTHONPATH=.:bundle python'))
def test_scripts_exist_and_have_the_options(command):
    command = command[command.index('python') + 1 :]
    if command[0] == '-m':
        assert command[1] == 'pytest' and all((ROOT / path).exists() for path in command[2:])
        return
    assert (ROOT / command[0]).is_file()
    source = (ROOT / command[0]).read_text(encoding='utf-8')
    for option in (word for word in command if word.startswith('--')):
        parameter = option.removeprefix('--').replace('-', '_')  # of a typer command
        assert f"'{option}'" in source or re.search(rf'^    {parameter}: ', source, flags=re.MULTILINE), option


@pytest.mark.parametrize('page', PAGES)
def test_files_and_folders_it_names_exist(page):
    named = re.findall(r'`((?:spt_parlai|projects|opt_presets|tests)/[\w./]*)`', PAGES[page])
    for name in named:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize('page', PAGES)
def test_its_links_lead_somewhere(page):
    for target, anchor in re.findall(r'\]\((?!https?:)([^)#]*)#?([^)]*)\)', PAGES[page]):
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r'^#+ (.*)$', file.read_text(encoding='utf-8'), flags=re.MULTILINE)
            assert anchor in {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings}


def first_cells(page):
    """What is in backquotes in the first cell of every table row, with the second cell."""
    for line in PAGES[page].splitlines():
        if line.startswith('| `'):
            cells = re.split(r'(?<!\\) \| ', line.removeprefix('| '))
            for name in re.findall(r'`([^`]*)`', cells[0]):
                yield name, cells[1]


@pytest.mark.parametrize('page', [AGENTS, METRICS])
def test_every_option_is_in_its_table_with_its_default(page):
    here = [group for group in GROUPS if (group is groups.METRICS) == (page == METRICS)]
    declared = {flag(option.name): option.default for group in here for option in group.options}
    shown = {name: default for name, default in first_cells(page) if name.startswith('--')}
    assert shown.keys() == declared.keys() and len(declared) >= 4
    for option, default in declared.items():
        if default not in (None, '') and option != '--instruction':
            written = f'{default:g}' if isinstance(default, float) else str(default)
            assert shown[option] == f'`{written.lower() if isinstance(default, bool) else written}`', option


def test_every_metric_is_defined():
    named = {name for name, _ in first_cells(METRICS)}
    numbered = {f'{name}_{n}' for name in ('sacrebleu', 'persona_bleu') for n in (1, 2, 3, 4)}
    assert numbered <= set(DEFINITIONS) <= named


def test_the_example_of_a_loss_works():
    from spt_parlai.objective import losses

    names = dict(vars(losses))
    exec(re.search(r'```python\n(.*?)```', PAGES['CONTRIBUTING.md'], flags=re.DOTALL)[1], names)
    (declared,) = fields(names['SptObjective'])
    assert declared.metadata['help'] == 'weight of the confidence of the retriever (0: off)' and declared.default == 0
    scores = torch.tensor([[0.25, 0.5], [0.75, 0.25]])
    term = declared.metadata['score_term'](None, losses.TermInputs(scores, None, None, None, None))
    assert term.values.tolist() == [0.5, 0.25]


def test_the_supported_pythons_are_the_same_everywhere():
    makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
    versions = re.search(r'^PYTHONS := (.*)$', makefile, flags=re.MULTILINE)[1].split()
    newest = int(versions[-1].removeprefix('3.'))
    assert f"python_requires='>={versions[0]},<3.{newest + 1}'" in (ROOT / 'setup.py').read_text(encoding='utf-8')
    for page in ('README.md', 'CONTRIBUTING.md'):
        assert f'Python {" or ".join(versions)}' in PAGES[page]
    assert f'Python {" and ".join(versions)}' in (ROOT / 'requirements.lock').read_text(encoding='utf-8')
