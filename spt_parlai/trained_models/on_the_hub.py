"""Trained models in repositories of the Hugging Face hub: `hf:OWNER/NAME` stands for the model file in one.

A repository holds the files of a model file (`spt push` writes them) and its card. It is downloaded once, into the
cache of huggingface_hub. Nothing in it runs: its tensors are read as plain data, and its options may name an agent of
this package only.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from spt_parlai import hub
from spt_parlai.errors import UsageError

PREFIX = 'hf:'
FILES = ('model', 'model.opt', 'model.dict', 'README.md')
_NAME = re.compile(r'hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?')


@cache
def download(name: str) -> str:
    """The model file of `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION`, from the local cache if the hub does not answer.

    :raises UsageError: if there is no such repository, it cannot be reached, or it holds no model of this package.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageError(f'{name}: give hf:OWNER/NAME, or hf:OWNER/NAME@REVISION.')
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        folder = Path(
            snapshot_download(
                match['repo'],
                revision=match['revision'],
                allow_patterns=list(FILES),
                local_files_only=not hub.hub_answers(),
            )
        )
    except RevisionNotFoundError as error:
        raise UsageError(f'{name}: the repository has no revision {match["revision"]}; give another.') from error
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise UsageError(
            f'{name}: there is no such repository for you; check the name, or log in with `hf auth login`.'
        ) from error
    except Exception as error:  # of the HTTP library, which is not the same one in all versions of huggingface_hub
        raise UsageError(
            f'{name} is not in the local Hugging Face cache and could not be downloaded ({type(error).__name__}); '
            'check the network, or give a model file.'
        ) from error
    _check(name, folder)
    return str(folder / 'model')


def _check(name: str, folder: Path) -> None:
    try:
        options = json.loads((folder / 'model.opt').read_text(encoding='utf-8'))
        agent = options['model']
    except (OSError, ValueError, KeyError, TypeError):
        agent = None
    if not (folder / 'model').is_file() or not isinstance(agent, str):
        raise UsageError(f'{name} holds no model of this package, which has the files model and model.opt.')
    if not agent.startswith('spt_parlai.agents:'):
        raise UsageError(f'{name} names the agent {agent}, which is not one of this package, so it is not loaded.')
