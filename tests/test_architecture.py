"""The rooms of the package keep to the import rule and to what they may know."""

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'spt_parlai'
MAY_READ_OPTIONS = {  # where ParlAI's option dictionary ends; everything below takes plain arguments
    *('agents', 'options', 'parlai_hooks', 'training', 'dialogue'),
    *('cli.py', '__main__.py', 'torchrun.py', 'demo', 'server'),  # commands
    'tasks',  # ParlAI calls teachers with nothing but its options
}
KNOW_NO_OPTION = ('model', 'metrics', 'objective')
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob('*.py'))


def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse((PACKAGE / path).read_text(encoding='utf-8'))))


@pytest.mark.skipif(not find_spec('importlinter'), reason='import-linter is not installed')
def test_a_room_imports_rooms_below_it_only():
    lint = [sys.executable, '-c', 'from importlinter.cli import lint_imports_command; lint_imports_command()']
    done = subprocess.run([*lint, '--no-cache'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '1 kept, 0 broken' in done.stdout


def test_every_room_has_its_place_in_the_import_rule():
    rule = (ROOT / 'pyproject.toml').read_text(encoding='utf-8')
    rooms = {path.parts[0].removesuffix('.py') for path in FILES} - {'__init__'}
    assert not {room for room in rooms if f'spt_parlai.{room}' not in rule}


@pytest.mark.parametrize(
    'path', [path for path in FILES if path.parts[0] not in MAY_READ_OPTIONS], ids=lambda path: path.as_posix()
)
def test_rooms_below_the_options_take_plain_arguments(path):
    def is_opt(node):
        return ast.unparse(node).split('.')[-1] == 'opt'

    reads = [
        node.lineno
        for node in nodes(path)
        if (isinstance(node, ast.Subscript) and is_opt(node.value))
        or (isinstance(node, ast.Attribute) and node.attr == 'get' and is_opt(node.value))
    ]
    assert not reads, f'{path} reads an option dictionary in lines {reads}'


@pytest.mark.parametrize(
    'path', [path for path in FILES if path.parts[0] in KNOW_NO_OPTION], ids=lambda path: path.as_posix()
)
def test_model_metrics_and_objective_know_no_option(path):
    """They raise ValueErrors that name the quantity; whoever holds the options adds the flag."""
    known = [
        node.lineno
        for node in nodes(path)
        if (isinstance(node, ast.Name) and node.id == 'UsageError')
        or (isinstance(node, ast.alias) and node.name == 'UsageError')
        or (isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith('--'))
    ]
    assert not known, f'{path} knows of options in lines {known}'
