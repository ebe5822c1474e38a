"""The modules of projects/spt_convai2, which is no package."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / 'projects' / 'spt_convai2'
NAMES = [path.stem for path in sorted(FOLDER.glob('*.py'))]


@pytest.fixture(scope='package')
def project():
    """The project's modules by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield type('Project', (), {name: importlib.import_module(name) for name in NAMES})
        for name in NAMES:
            sys.modules.pop(name, None)
