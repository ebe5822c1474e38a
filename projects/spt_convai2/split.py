"""The corpora of the experiment `mixed`: from files of one dialogue a line to ParlAI's datapath, with a fixed split."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from spt_parlai.errors import UsageError
from spt_parlai.text_files import read_lines

SPLIT = Path(__file__).with_name('split.json')
END = '__eou__'
NAMES = ('topical_chat', 'taskmaster4', 'wizard_of_wikipedia')


def identity(dialogue: str) -> str:
    """The id of a dialogue: the beginning of its SHA-256."""
    return hashlib.sha256(dialogue.encode()).hexdigest()[:12]


def dialogues(path: Path) -> list[str]:
    """The dialogues of a file with a reply in them, each once; empty utterances are left out."""
    try:
        lines = read_lines(path)
    except ValueError as error:
        raise UsageError(f'{path}: {error}; give with --from the folder that holds {path.name}.') from error
    turns = ([turn.strip() for turn in line.split(END)] for line in lines)
    kept = (f' {END} '.join(filter(None, one)) for one in turns if sum(map(bool, one)) > 1)
    return list(dict.fromkeys(kept))


def install(source: Path, datapath: Path) -> dict[str, tuple[int, int]]:
    """Write `DATAPATH/dialogue_lines/NAME/{train,valid}.txt` of every corpus; returns the numbers of dialogues.

    Which dialogues are valid is committed as `split.json`. Others than those of the split's makers are training
    dialogues.

    :raises UsageError: if a file is missing or lacks dialogues of the split.
    """
    split: dict[str, list[str]] = json.loads(SPLIT.read_text(encoding='utf-8'))
    made = {}
    for name in NAMES:
        by_id = {identity(dialogue): dialogue for dialogue in dialogues(source / f'{name}.txt')}
        missing = [one for one in split[name] if one not in by_id]
        if missing:
            raise UsageError(
                f'{source / name}.txt lacks {len(missing)} of the {len(split[name])} dialogues for validation: give '
                'the file whose split is committed, or write train.txt and valid.txt yourself.'
            )
        folds = {'valid': [by_id.pop(one) for one in split[name]], 'train': list(by_id.values())}
        folder = datapath / 'dialogue_lines' / name
        folder.mkdir(parents=True, exist_ok=True)
        for fold, texts in folds.items():
            (folder / f'{fold}.txt').write_text(''.join(f'{text}\n' for text in texts), encoding='utf-8')
        made[name] = len(folds['train']), len(folds['valid'])
    return made


def draw_split(source: Path, each: int = 150) -> None:
    """Write `split.json`: the dialogues with the smallest ids, which is a random draw."""
    split = {name: sorted(map(identity, dialogues(source / f'{name}.txt')))[:each] for name in NAMES}
    SPLIT.write_text(json.dumps(split, indent=0), encoding='utf-8')
