"""Selective Prompt Tuning as a ParlAI agent (arXiv 2406.18187).

Importing this package imports nothing slow. ParlAI gets its hooks (see `parlai_hooks`) as soon as both it and this
package have been imported, whichever comes first.
"""

import sys
from importlib import util
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from spt_parlai import requirements, terminal

if TYPE_CHECKING:
    from spt_parlai.api import Model

__version__ = '0.1.0'


def load(model_file: str, **options: Any) -> 'Model':
    """Load a model file, or one inside the package by its name, to talk to it. See :class:`spt_parlai.api.Model`."""
    from spt_parlai.api import Model

    return Model(model_file, **options)


def _install_hooks() -> None:
    from spt_parlai import parlai_hooks

    parlai_hooks.install()


class _HookedParlAI:
    """Finds ParlAI where the other finders do. Whoever imports it gets it with its hooks."""

    def __init__(self) -> None:
        self._asks_the_others = False

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        if fullname != 'parlai' or self._asks_the_others:
            return None
        self._asks_the_others = True
        try:
            requirements.check()
            spec = util.find_spec('parlai')
        finally:
            self._asks_the_others = False
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_hook(module: ModuleType) -> None:
            execute(module)
            _install_hooks()

        spec.loader.exec_module = execute_and_hook  # type: ignore[method-assign]
        return spec


terminal.replace_what_cannot_be_encoded()
if 'parlai' in sys.modules:
    requirements.check()
    _install_hooks()
else:
    sys.meta_path.insert(0, _HookedParlAI())
