"""Share a model: a folder with what was trained and its card, here or in a repository of the Hugging Face hub."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from spt_parlai import hub
from spt_parlai.checkpoints.card import CARD, model_card, read_report
from spt_parlai.checkpoints.files import load_states, write_atomically
from spt_parlai.checkpoints.strip import strip
from spt_parlai.errors import UsageError


def write_folder(
    model_file: str | Path, folder: Path, name: str | None = None, report: Path | None = None, force: bool = False
) -> None:
    """Write the model file, without what only training needs, and its card into a folder, from which it can be loaded.

    A card beside the model file is taken as it is.

    :param name: what the model will be loaded by; default: its path in the folder.
    :param report: a report of its evaluation, for the card.
    :raises UsageError: for a file that cannot be read or written, or a model that is there already (unless `force`).
    """
    states = load_states(model_file)
    results = read_report(report) if report else {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f'{folder} cannot be made ({error.strerror}); give another folder.') from error
    strip(model_file, folder / 'model', force=force)
    options = json.loads((folder / 'model.opt').read_text(encoding='utf-8'))
    own = Path(model_file).with_name(CARD)
    card = (
        own.read_text(encoding='utf-8')
        if own.exists() and not report
        else model_card(name or str(folder / 'model'), states['spt'], options, results)
    )
    write_atomically(folder / CARD, lambda part: part.write_text(card, encoding='utf-8'))


def push(model_file: str | Path, repo: str, report: Path | None = None, private: bool = False) -> str:
    """Write the model into a repository of the hub, which is made if there is none, and return its address.

    :raises UsageError: if nobody is logged in, the hub refuses, or it cannot be reached.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        write_folder(model_file, Path(folder), f'hf:{repo}', report)
        if not hub.hub_answers():
            raise UsageError('the Hugging Face hub cannot be reached; write a folder with --folder to upload it later.')
        try:
            api = HfApi()
            address = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message='Upload a model of spt_parlai')
        except Exception as error:  # of the HTTP library, and for a name that cannot be one
            raise UsageError(
                f'{repo} could not be written ({" ".join(str(error).split())[:200]}); log in with `hf auth login`, '
                'and give OWNER/NAME of a repository that is yours.'
            ) from error
    return str(address)
