"""The report of all finished runs, and the choice of the runs that the figures show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import figures
import html_report
import prompt_use
import table_text
from corpora import read_logs, title_of, world_logs
from grid import Row, TableOfRows, job_of
from runner import Place, finished, read_record, write_json
from sizes import Size

from spt_parlai.dashboard.page import page
from spt_parlai.dashboard.world_logs import Turn, read_turns
from spt_parlai.errors import UsageError

PATTERNS = {'emoji': figures.EMOJI, 'a question': r'\?', '“i”': r'(?i)\bi\b'}
MOST_PANELS = 6


def first_finished(row: Row, size: Size, seeds: Sequence[int], place: Place) -> tuple[dict, dict[str, Path]] | None:
    """(record, corpus → world log) of the first finished seed, None if there is none."""
    for seed in seeds:
        job = job_of(row, size, seed)
        record, (evaluation,) = read_record(place.record(job)), job.evaluations
        if finished(record, evaluation.key, dict(evaluation.options)):
            return record, world_logs(place.folder(job), evaluation.key, job)
    return None


def _rows(tables: Sequence[TableOfRows], *names: str) -> list[Row]:
    """The rows of the named tables, or else of all, each label once. Rows of DailyDialog say so in their label."""
    chosen = [table for table in tables if table.name in names] or list(tables)
    rows = [_with_its_task(row) for table in chosen for row in table.rows]
    return list({row.label: row for row in rows}.values())


def _with_its_task(row: Row) -> Row:
    if row.method.task != 'plain':
        return row
    return row._replace(label=f'{row.label}, DailyDialog', against=row.against and f'{row.against}, DailyDialog')


def two_models(
    tables: Sequence[TableOfRows], size: Size, seeds: Sequence[int], place: Place, left: str | None, right: str | None
) -> dict[str, list[Turn]]:
    """label → turns of two rows: the named ones, or the last SPT of table 1 and its PT.

    :raises UsageError: if one of them has not finished.
    """
    ready = {
        row.label: (row, found) for row in _rows(tables, 'table1') if (found := first_finished(row, size, seeds, place))
    }
    spts = [label for label, (row, _) in ready.items() if row.method.agent == 'SptAgent' and row.against in ready]
    right = right or (spts[-1] if spts else None)
    left = left or (ready[right][0].against if right in ready else None)
    for name in (left, right):
        if name not in ready:
            raise UsageError(
                f'{name or "an SPT row with its PT"} has not finished; finished rows: {", ".join(ready) or "none"}.'
            )
    return {name: read_logs(ready[name][1][1]) for name in (left, right)}


def make(
    asked: Sequence[TableOfRows],
    tables: Sequence[dict[str, Any]],
    size: Size,
    llms: Sequence[str],
    seeds: Sequence[int],
    place: Place,
    patterns: dict[str, str] | None,
) -> Path:
    """Write the tables, the figures, index.html and runs.html into OUT/report; return the path of index.html."""
    folder = place.out / 'report'
    used = prompt_use.usage(asked, size, seeds, place)
    write_json(folder / 'tables.json', {'tables': list(tables), 'usage': used})
    usage = {'title': prompt_use.TITLE, 'lines': prompt_use.lines(used), 'note': prompt_use.NOTE} if used else None
    table_text.write(tables, usage, folder)
    records = [record for path in sorted((place.out / 'runs').glob('*/run.json')) if (record := read_record(path))]
    drawn = draw(asked, size, seeds, place, folder, patterns or PATTERNS)
    browsed = browse(asked, size, seeds, place, folder / 'runs.html')
    names = ', '.join(Path(llm).name for llm in llms)
    steps = f'{size.train["max_train_steps"]} steps' if 'max_train_steps' in size.train else 'the epochs of table 6'
    subtitle = (
        f'{names}; {", ".join(dict.fromkeys(record["task"] for record in records))}; '
        f'{steps} of {size.train["batchsize"]} dialogues; '
        f'{size.evaluate.get("num_examples", "all")} replies evaluated; seeds {", ".join(map(str, seeds))}'
    )
    return html_report.write(
        folder / 'index.html',
        'Selective Prompt Tuning: the experiments',
        subtitle,
        tables,
        usage,
        drawn,
        records,
        browsed,
    )


def browse(asked: Sequence[TableOfRows], size: Size, seeds: Sequence[int], place: Place, path: Path) -> dict[str, str]:
    """Write the dashboard of every row's first finished seed; return run → the row's label."""
    labels: dict[str, str] = {}
    for table in asked:
        for row in table.rows:
            found = first_finished(row, size, seeds, place)
            if found:
                labels.setdefault(found[0]['name'], row.label)
    if labels:
        path.parent.mkdir(parents=True, exist_ok=True)
        files = [place.out / 'runs' / name / 'model' for name in labels]
        titles = {name: f'{label}, seed {name.rpartition("seed")[2]}' for name, label in labels.items()}
        path.write_text(page(files, live=False, titles=titles), encoding='utf-8')
    return labels


def draw(
    asked: Sequence[TableOfRows], size: Size, seeds: Sequence[int], place: Place, folder: Path, patterns: dict[str, str]
) -> list[html_report.Figure]:
    """Draw every figure for which there are finished runs, from each row's first finished seed."""
    ready = [
        (row, found) for row in _rows(asked, 'table1', 'table9') if (found := first_finished(row, size, seeds, place))
    ]
    curves = {
        row.label: curve for row, (record, _) in ready if (curve := record['stages'].get('train', {}).get('curve'))
    }
    logs = {
        row.label + (f', {title_of(corpus)}' if len(of_row) > 1 else ''): read_turns(log)
        for row, (_, of_row) in ready
        if row.method.agent == 'SptAgent'
        for corpus, log in of_row.items()
    }
    logs = {label: turns for label, turns in logs.items() if figures.prompts_of(turns) > 1}
    shown, seed = dict(list(logs.items())[:MOST_PANELS]), f'seed {seeds[0]}'
    result = []

    def add(name: str, short: str, title: str, caption: str, path: Path, **more) -> None:
        result.append(html_report.Figure(name, short, title, f'{caption} ({seed})', path, **more))

    if shown:
        with_persona = [label for label, turns in shown.items() if any(turn.persona for turn in turns)]
        label = (with_persona or list(shown))[-1]
        add(
            'figure2',
            'Figure 2',
            'Figure 2. Which prompt is used at which turn',
            'How often the retriever selects each prompt, by turn of the dialogue',
            figures.usage_by_turn(shown, folder / 'figure2.png'),
        )
        add(
            'figure3',
            'Figure 3',
            f'Figure 3. Style of each prompt: {label}',
            'Share of replies that match a pattern, by prompt and turn; grey: the prompt was not used',
            figures.pattern_by_prompt(shown[label], patterns, folder / 'figure3.png'),
        )
        add(
            'scores',
            'Scores',
            'Retriever scores in two dimensions',
            'Each point is a context, at the principal components of the logarithms of its K scores',
            figures.score_projection(shown, folder / 'scores.png'),
        )
    try:
        models = two_models(asked, size, seeds, place, None, None)
    except UsageError:  # no pair of runs is finished yet
        models = {}
    if models:
        pairs = figures.paired_dialogues(*models.values(), 4)
        add(
            'figure4',
            'Figure 4',
            'Figure 4. The same dialogues, two models',
            'Each model replies to the messages of the dialogue and sees the gold replies of the earlier turns',
            figures.conversations(pairs, tuple(models), folder / 'figure4.png'),
            dialogues=[{**d, 'turns': d['turns'][:4]} for d in pairs],
            names=tuple(models),
        )
    if curves:
        add(
            'training',
            'Training',
            'Training curves',
            'The reports of the training log',
            figures.training_curves(curves, folder / 'training.png'),
        )
    return result
