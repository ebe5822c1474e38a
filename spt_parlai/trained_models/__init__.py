"""Trained models by name: `spt:NAME` is a folder inside the package, `hf:OWNER/NAME` a repository of the hub."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from spt_parlai.errors import UsageError
from spt_parlai.trained_models import on_the_hub

PREFIX = 'spt:'
FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The models, as `-mf` takes them."""
    return sorted(PREFIX + card.parent.name for card in FOLDER.glob('*/README.md'))


def is_name(path: str) -> bool:
    """Whether this is a name, not a path."""
    return path.startswith((PREFIX, on_the_hub.PREFIX))


def resolve(path: str) -> str:
    """The model file that a name stands for, downloaded at its first use; any other path as it is.

    :raises UsageError: if there is no such model.
    """
    if path.startswith(on_the_hub.PREFIX):
        return on_the_hub.download(path)
    if not path.startswith(PREFIX):
        return path
    if path not in names():
        nearest = difflib.get_close_matches(path, names(), n=1, cutoff=0)
        raise UsageError(
            f'{path}: there is no such model; did you mean {nearest[0]}? The models inside the package are '
            f'{", ".join(names())}; any other model file is given by its path, or as hf:OWNER/NAME.'
        )
    return str(FOLDER / path.removeprefix(PREFIX) / 'model')


def name_of(path: str) -> str | None:
    """The name of a model file inside the package or the hub's cache, None for any other path."""
    file = Path(path)
    if file.name != 'model':
        return None
    if file.parent.parent == FOLDER:
        return PREFIX + file.parent.name
    cached = (
        re.fullmatch('models--(.+)--(.+)', file.parents[2].name) if file.parent.parent.name == 'snapshots' else None
    )
    return f'{on_the_hub.PREFIX}{cached[1]}/{cached[2]}' if cached else None
