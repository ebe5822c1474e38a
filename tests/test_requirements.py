"""What the package says where ParlAI cannot run: one sentence with the command to run."""

import subprocess
import sys
from importlib import metadata, util

import pytest

from spt_parlai import requirements
from spt_parlai.errors import UsageError


@pytest.fixture
def without(monkeypatch):
    """Hide modules and change the version of one package."""

    def hide(*modules, **versions):
        find, version = util.find_spec, metadata.version
        monkeypatch.setattr(requirements.util, 'find_spec', lambda name: None if name in modules else find(name))
        monkeypatch.setattr(requirements.metadata, 'version', lambda name: versions.get(name) or version(name))

    return hide


@pytest.mark.parametrize(
    'modules, versions, named',
    [
        (('parlai',), {}, 'ParlAI 1.7.2 is not installed'),
        (('pkg_resources',), {'setuptools': '82.0.1'}, 'setuptools 82.0.1'),
        (('nltk',), {}, "nltk is not installed, and ParlAI's BLEU fails without it"),
        ((), {'torch': '2.9.1+cu128'}, 'torch 2.9.1+cu128 is older than 2.11'),
        ((), {'transformers': '4.57.0'}, 'transformers 4.57.0 is older than 5'),
    ],
)
def test_a_broken_combination_is_one_sentence(without, modules, versions, named):
    without(*modules, **versions)
    with pytest.raises(UsageError) as error:
        requirements.check()
    assert named in str(error.value) and 'make install' in str(error.value) and '\n' not in str(error.value)


def test_this_environment_is_fine():
    requirements.check()


def test_import_without_parlai_ends_in_the_sentence_not_a_traceback():
    hidden = "import sys; sys.modules['parlai'] = None; import spt_parlai"
    done = subprocess.run([sys.executable, '-c', hidden], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and 'ParlAI 1.7.2 is not installed' in done.stderr and 'Traceback' not in done.stderr
