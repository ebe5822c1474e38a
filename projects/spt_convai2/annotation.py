"""Table 7: replies judged by people.

A sheet shows replies without their models. Filled sheets give each model's means and the agreement of the judges.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from paper_figures import JUDGED
from scipy.stats import binomtest

from spt_parlai.dashboard.world_logs import Turn
from spt_parlai.errors import UsageError

GUIDE = {  # criterion → what 0, 1 and 2 mean (A.4)
    'persona consistency': ('contradicts the persona', 'has nothing to do with it', 'is consistent with it'),
    'context consistency': ('contradicts what was said before', 'has nothing to do with it', 'is consistent with it'),
    'engagingness': ('boring', 'safe but bland', 'interesting'),
}
COLUMNS = ('id', 'persona', 'dialogue', 'reply', *JUDGED)


def _dialogue(turns: Sequence[Turn], turn: Turn) -> str:
    """What people said before a reply."""
    said = []
    for earlier in turns:
        if earlier.dialogue == turn.dialogue and earlier.number <= turn.number:
            said += [f'A: {earlier.said}'] if earlier.said else []
            said += [f'B: {earlier.label}'] if earlier.number < turn.number else []
    return '\n'.join(said)


def make_sheet(models: dict[str, Sequence[Turn]], count: int, seed: int) -> tuple[list[dict[str, str]], dict[str, str]]:
    """(rows, id → model): `count` replies of each model to the same contexts, drawn and shuffled with the seed.

    :raises UsageError: if the models have replied to fewer contexts in common.
    """
    by_place = {name: {(t.dialogue, t.number): t for t in turns} for name, turns in models.items()}
    common = sorted(set.intersection(*(set(places) for places in by_place.values())))
    if len(common) < count:
        raise UsageError(
            f'--replies {count}: the logs have only {len(common)} replies to the same contexts; give at most that.'
        )
    generator = random.Random(seed)
    drawn = [(name, place) for place in generator.sample(common, count) for name in models]
    generator.shuffle(drawn)
    rows, key = [], {}
    for number, (name, place) in enumerate(drawn, 1):
        turn = by_place[name][place]
        identity = f'{number:03d}'
        key[identity] = name
        rows.append(
            {
                'id': identity,
                'persona': '\n'.join(turn.persona),
                'dialogue': _dialogue(models[name], turn),
                'reply': turn.reply,
                **dict.fromkeys(JUDGED, ''),
            }
        )
    return rows, key


def read_votes(path: Path) -> list[dict]:
    """The comparisons of a ratings file that `spt chat --compare` wrote, of each two replies the last vote.

    :raises UsageError: if it cannot be read, or holds none.
    """
    votes = {}
    try:
        for entry in map(json.loads, path.read_text(encoding='utf-8').split('\n')[:-1]):
            if entry['kind'] == 'comparison':
                votes[json.dumps([(r['model'], r['messages'], r['text']) for r in entry['replies']])] = entry
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f'{path} is no file of ratings ({error}); give the one of spt chat --ratings.') from error
    if not votes:
        raise UsageError(f'{path} holds no vote between two models; collect some with spt chat MODEL --compare OTHER.')
    return list(votes.values())


def count_votes(votes: Sequence[dict]) -> dict[str, int | float]:
    """How often each of two models was preferred and how often neither ('equal'), and the p of a two-sided sign test.

    :raises UsageError: if the votes are of more than two models.
    """
    models = sorted({reply['model'] for vote in votes for reply in vote['replies']})
    if len(models) != 2:
        raise UsageError(f'the votes are of {len(models)} models ({", ".join(models)}); give those of one pair.')
    won = [sum(vote['preferred'] == model for vote in votes) for model in models]
    p = float(binomtest(won[0], sum(won)).pvalue) if sum(won) else 1.0
    return {**dict(zip(models, won, strict=True)), 'equal': len(votes) - sum(won), 'p': p}


def sheet_of_votes(votes: Sequence[dict], seed: int) -> tuple[list[dict[str, str]], dict[str, str]]:
    """(rows, id → model): all replies that were voted on, shuffled with the seed."""
    replies = [reply for vote in votes for reply in vote['replies']]
    random.Random(seed).shuffle(replies)
    rows, key = [], {}
    for number, reply in enumerate(replies, 1):
        speakers = {'user': 'A', 'assistant': 'B'}
        lines = [f'{speakers[m["role"]]}: {m["content"]}' for m in reply['messages'] if m['role'] in speakers]
        key[f'{number:03d}'] = reply['model']
        rows.append(
            {
                'id': f'{number:03d}',
                'persona': '\n'.join(m['content'] for m in reply['messages'] if m['role'] == 'system'),
                'dialogue': '\n'.join(lines),
                'reply': reply['text'],
                **dict.fromkeys(JUDGED, ''),
            }
        )
    return rows, key


def write_sheet(rows: Sequence[dict[str, str]], key: dict[str, str], path: Path) -> Path:
    """Write the sheet as CSV and, beside it, the key, which judges must not see. Returns the key's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The byte order mark tells spreadsheet programs that the file is UTF-8.
    with path.open('w', newline='', encoding='utf-8-sig') as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    hidden = path.with_suffix('.key.json')
    hidden.write_text(json.dumps(key, indent=1), encoding='utf-8')
    return hidden


def read_scores(path: Path, key: dict[str, str]) -> dict[tuple[str, str], int]:
    """(id, criterion) → 0, 1 or 2. Blank cells are left out.

    :raises UsageError: if a row has another value, or an id that is not in the key.
    """
    scores = {}
    try:
        with path.open(newline='', encoding='utf-8-sig') as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f'{path} cannot be read ({error}); save the sheet as CSV in UTF-8.') from error
    for line, row in enumerate(rows, 2):
        if row.get('id') not in key:
            raise UsageError(
                f'{path}, row {line}: id {row.get("id")!r} is not in the key; give the sheet that belongs to it.'
            )
        for criterion in JUDGED:
            value = (row.get(criterion) or '').strip()
            if value and value not in ('0', '1', '2'):
                raise UsageError(f'{path}, row {line}, {criterion}: {value!r} is no score; write 0, 1 or 2.')
            if value:
                scores[row['id'], criterion] = int(value)
    return scores


def agreement(sheets: Sequence[dict[tuple[str, str], int]], criterion: str) -> float | None:
    """Cohen's kappa with quadratic weights, mean over all pairs of judges; None for a single judge.

    Two judges with identical scores count as 1, also where kappa is not defined because all scores are the same.
    """
    from sklearn.metrics import cohen_kappa_score

    kappas = []
    for one, other in combinations(sheets, 2):
        items = sorted(k for k in one.keys() & other.keys() if k[1] == criterion)
        first, second = [one[k] for k in items], [other[k] for k in items]
        if items:
            same = first == second
            kappas.append(
                1.0 if same else float(cohen_kappa_score(first, second, weights='quadratic', labels=[0, 1, 2]))
            )
    return float(np.mean(kappas)) if kappas else None


def score(sheets: Sequence[dict[tuple[str, str], int]], key: dict[str, str]) -> dict:
    """Mean, standard deviation and number of judgements of each model and criterion, and the judges' agreement."""
    models = sorted(set(key.values()))
    means = {
        model: {
            criterion: {
                'mean': float(np.mean(values)) if values else None,
                'sd': float(np.std(values)) if values else None,
                'n': len(values),
            }
            for criterion in JUDGED
            for values in [[s for sheet in sheets for (i, c), s in sheet.items() if c == criterion and key[i] == model]]
        }
        for model in models
    }
    return {
        'judges': len(sheets),
        'models': means,
        'agreement': {criterion: agreement(sheets, criterion) for criterion in JUDGED},
    }
