"""All hooks are installed from one list, once; nothing else in the package assigns to objects of ParlAI or torch."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest
import torch
from parlai.core.build_data import DownloadableFile
from parlai.core.metrics import RougeMetric
from parlai.core.teachers import FixedDialogTeacher, Teacher
from parlai.scripts import train_model
from parlai.scripts.train_model import TrainLoop

import spt_parlai
from spt_parlai import parlai_hooks

PACKAGE = Path(spt_parlai.__file__).parent
EVERYWHERE, WITHOUT_CUDA = parlai_hooks.hooks()
HOOKS = [*EVERYWHERE, *WITHOUT_CUDA]
FOREIGN = ('parlai', 'torch', 'transformers', 'requests', 'peft', 'numpy', 'random')


def test_installing_twice_changes_nothing():
    owners = (RougeMetric, TrainLoop, FixedDialogTeacher, Teacher, DownloadableFile, train_model)
    before = [dict(vars(owner)) for owner in owners]
    parlai_hooks.install()
    assert [dict(vars(owner)) for owner in owners] == before


def test_the_list_names_every_hook():
    """A hook is a public function without arguments of one of the room's files."""
    found = set()
    for path in (PACKAGE / 'parlai_hooks').glob('*.py'):
        module = importlib.import_module(f'spt_parlai.parlai_hooks.{path.stem}') if path.stem != '__init__' else None
        for name, function in vars(module).items() if module else ():
            if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith('_'):
                if not inspect.signature(function).parameters and name != 'leave':
                    found.add(function)
    assert found == set(HOOKS) and len(HOOKS) == len(found)


@pytest.mark.parametrize('hook', HOOKS, ids=lambda hook: hook.__name__)
def test_every_hook_says_what_breaks_where_why_it_is_safe_and_when_it_goes(hook):
    lines = [line.strip() for line in hook.__doc__.splitlines()]
    parts = [part for line in lines for part in ('Breaks:', 'Where:', 'Safe:', 'Goes:') if line.startswith(part)]
    assert parts == ['Breaks:', 'Where:', 'Safe:', 'Goes:']
    assert lines[0].endswith('.') and not lines[1]


def test_the_hooks_are_in_place():
    """Spot checks, one of each file: what ParlAI holds now is defined in this package."""
    from parlai.core import worlds
    from parlai.scripts import multiprocessing_train
    from parlai.utils import distributed

    for function in (
        RougeMetric.compute_many,
        TrainLoop.train_steps,
        TrainLoop._get_time,
        train_model.load_eval_worlds,
        FixedDialogTeacher.__init__,
        DownloadableFile.download_file,
        worlds._create_task_agents,
        worlds.BackgroundDriverWorld.parley,
        multiprocessing_train.multiprocess_train,
        *(() if torch.cuda.is_available() else (distributed.all_gather_list,)),
    ):
        assert function.__module__.startswith('spt_parlai.parlai_hooks'), function
    assert inspect.unwrap(distributed.slurm_distributed_context).__module__ == 'spt_parlai.parlai_hooks.slurm'


# ---- the package's source ---------------------------------------------------------------------------------


def assigned_attributes(tree):
    """(line, the name at the root) of every assignment to an attribute or item of an attribute, and every `setattr`."""
    for node in ast.walk(tree):
        targets = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ('setattr', 'delattr'):
            yield node.lineno, root(node.args[0])
        for target in targets:
            for part in ast.walk(target):
                if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store | ast.Del):
                    yield node.lineno, root(part)


def root(node):
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def imported_names(tree):
    """{name: whether it is of a foreign package} for everything that a file imports, also inside functions."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split('.')[0]
                found[alias.asname or top] = top in FOREIGN
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = (node.module or '').split('.')[0] in FOREIGN
    return found


def foreign_assignments(source):
    tree = ast.parse(source)
    foreign = imported_names(tree)
    return [(line, name) for line, name in assigned_attributes(tree) if foreign.get(name)]


@pytest.mark.parametrize(
    'source',
    [
        'from parlai.scripts.train_model import TrainLoop\nTrainLoop.validate = None',
        'import parlai.core.worlds\nparlai.core.worlds.validate = None',
        'def f():\n    from parlai.core import worlds as w\n    setattr(w, "validate", None)',
        'import torch\ntorch.backends.x.y: bool = True',
        'import torch\na, torch.b = 1, 2',
        'from parlai.core import worlds\ndel worlds.validate',
    ],
)
def test_the_scan_finds_assignments(source):
    assert len(foreign_assignments(source)) == 1


def test_the_scan_lets_objects_of_ones_own_be():
    assert not foreign_assignments('import torch\ndef f(loop):\n    x = torch.tensor(1)\n    x.a = loop.b = 1')


def test_only_hooks_assign_to_objects_of_other_packages():
    found = {
        str(path.relative_to(PACKAGE)): assignments
        for path in PACKAGE.rglob('*.py')
        if (assignments := foreign_assignments(path.read_text(encoding='utf-8')))
    }
    assert found and all(name.startswith('parlai_hooks/') for name in found), found
