"""`MODEL.metrics.jsonl`: everything that a training run reports, one JSON object a line, appended as it happens.

The first line holds the options of the run. Every further line is a report, with its `kind`: `train` and `valid` are
ParlAI's reports, and `replies` is what every prompt replies to some fixed contexts (`--log-replies`). A run that
continues from a checkpoint keeps the lines up to that checkpoint, so that no step is there twice.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spt_parlai.checkpoints.files import write_atomically

Entry = dict[str, Any]


def path_of(model_file: str | Path) -> Path:
    """Where the reports of the run are that writes a model file."""
    return Path(f'{model_file}.metrics.jsonl')


def begin(model_file: str | Path, options: Mapping[str, Any], parleys: int, valid_reports: Sequence[Entry]) -> None:
    """Write the options, after which come the entries of the run up to the checkpoint from which it continues.

    The reports of validation are taken from the checkpoint, which may hold one that the file lacks.

    :param parleys: batches that the checkpoint has seen; 0 for a new run, which begins a new file.
    :param valid_reports: those of the checkpoint.
    :raises UsageError: if the file cannot be written.
    """
    validated = {report.get('parleys') for report in valid_reports}
    kept = [
        entry
        for entry in (read(path_of(model_file)) if parleys else [])
        if (entry['kind'] == 'train' and entry['parleys'] <= parleys)
        or (entry['kind'] == 'replies' and entry['parleys'] in validated)
    ]
    kept += [{'kind': 'valid', **report} for report in valid_reports]
    kept.sort(key=lambda entry: (entry['parleys'], ('train', 'replies', 'valid').index(entry['kind'])))
    lines = [{'kind': 'options', **options}, *kept]
    write_atomically(path_of(model_file), lambda part: part.write_text(''.join(map(_line, lines)), encoding='utf-8'))


def append(model_file: str | Path, kind: str, report: Mapping[str, Any]) -> None:
    """Add a report at the end."""
    with open(path_of(model_file), 'a', encoding='utf-8') as file:
        file.write(_line({'kind': kind, **report}))


def read(path: Path) -> list[Entry]:
    """The entries of a file, in their order. A line that a killed run did not finish, and all that is no entry, is
    left out.
    """
    try:
        lines = path.read_text(encoding='utf-8', errors='replace').split('\n')
    except FileNotFoundError:
        return []
    entries = []
    for line in lines:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and (entry.get('kind') == 'options' or isinstance(entry.get('parleys'), int)):
                entries.append(entry)
    return entries


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry) + '\n'
