"""Trained models inside the package, a folder each; `spt:` and the name of the folder stand for a model file."""

from __future__ import annotations

import difflib
from pathlib import Path

from spt_parlai.errors import UsageError

PREFIX = 'spt:'
FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The models, as `-mf` takes them."""
    return sorted(PREFIX + card.parent.name for card in FOLDER.glob('*/README.md'))


def resolve(path: str) -> str:
    """The model file that `spt:NAME` stands for; any other path as it is.

    :raises UsageError: if there is no such model.
    """
    if not path.startswith(PREFIX):
        return path
    if path not in names():
        nearest = difflib.get_close_matches(path, names(), n=1, cutoff=0)
        raise UsageError(
            f'{path}: there is no such model; did you mean {nearest[0]}? The models inside the package are '
            f'{", ".join(names())}; any other model file is given by its path.'
        )
    return str(FOLDER / path.removeprefix(PREFIX) / 'model')


def name_of(path: str) -> str | None:
    """The name of a model file inside the package, None for any other path."""
    file = Path(path)
    inside = file.name == 'model' and file.parent.parent == FOLDER
    return PREFIX + file.parent.name if inside else None
