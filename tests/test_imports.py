"""What the package imports, and when: nothing slow before it is needed, and ParlAI always with its hooks."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'spt_parlai'
MODEL_FILE = ROOT / 'tests' / 'golden' / 'v0_1_0' / 'whole' / 'model'
OF_THE_LLM = {'accelerate', 'peft', 'transformers'}
OF_FEW_COMMANDS = {'bert_score', 'matplotlib', 'pandas', 'rouge', 'rouge_score', 'sklearn'}


def imported_by(code):
    """Run code in a new interpreter; returns what it prints and the top-level modules that it imported."""
    code += '\nimport sys; print(); print(*{name.split(".")[0] for name in sys.modules})'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed, names = done.stdout.rstrip('\n').rsplit('\n', 1)
    return printed, set(names.split())


def test_help_info_llms_and_a_dashboard_import_neither_torch_nor_transformers_nor_parlai(tmp_path):
    info = ['info', str(MODEL_FILE)]
    dashboard = ['dashboard', str(ROOT / 'tests/golden/v0_1_0/stopped'), '--export', str(tmp_path / 'page.html')]
    printed, imported = imported_by(
        'from spt_parlai.cli import app\n'
        f'for words in (["--help"], ["data", "--help"], ["--version"], ["llms"], {info}, {dashboard}):\n'
        '    app(words, standalone_mode=False)'
    )
    assert (tmp_path / 'page.html').exists()
    assert 'import-authors' in printed and 'convai2' in printed and 'num_prompts' in printed
    assert not imported & {'numpy', 'torch', 'parlai', *OF_THE_LLM, *OF_FEW_COMMANDS}


def test_options_are_parsed_before_anything_of_the_llm_is_imported():
    printed, imported = imported_by(
        'import sys, spt_parlai\n'
        'print("parlai" in sys.modules)\n'
        'from parlai.scripts.train_model import TrainLoop, TrainModel\n'
        'print(TrainLoop.train_steps.__module__)\n'
        'words = "-m spt_parlai.agents:SptAgent -t spt_parlai.tasks.sample".split()\n'
        'print(TrainModel.setup_args().parse_args(words)["num_prompts"])'
    )
    assert printed.split()[-3:] == ['False', 'spt_parlai.parlai_hooks.screen', '4']
    assert not imported & (OF_THE_LLM | OF_FEW_COMMANDS)


# ---- ParlAI and its hooks -------------------------------------------------------------------------------------

FILES = sorted(path.relative_to(ROOT) for path in PACKAGE.rglob('*.py'))


@cache
def imported_at_once(path):
    """The modules that a file imports when it is imported, in this order."""
    names = []
    for node in ast.parse((ROOT / path).read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module, *(f'{node.module}.{alias.name}' for alias in node.names)]
    return names


def file_of(module):
    path = Path(*module.split('.'))
    return next((p for p in (path.with_suffix('.py'), path / '__init__.py') if (ROOT / p).is_file()), None)


def needs_parlai(path, seen=frozenset()):
    """Whether importing a file of the package imports ParlAI, itself or through other files."""
    return path not in seen and any(
        name.split('.')[0] == 'parlai' or (file := file_of(name)) and needs_parlai(file, seen | {path})
        for name in imported_at_once(path)
    )


@pytest.mark.parametrize('path', FILES, ids=Path.as_posix)
def test_a_room_imports_parlai_before_its_files_do(path):
    """The hooks import files of many rooms. A file that is only half imported when they come would be too late."""
    if needs_parlai(path):
        alone = path.name in ('torchrun.py', 'api.py', 'judge.py')  # files of no room
        first = path if alone else path.parent / '__init__.py'
        ours = [name for name in imported_at_once(first) if name.split('.')[0] in ('parlai', 'spt_parlai')]
        assert ours[0].split('.')[0] == 'parlai'
