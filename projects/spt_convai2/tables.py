"""The paper's tables from finished runs, as plain values: mean ± sd over seeds, gain over a row with its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from corpora import corpora_of, metrics_of_corpus, title_of, world_logs
from grid import Row, TableOfRows, job_of
from measures import ABSENT, NO_MODELS, Measures, Models, at_equal_counts, smallest_counts
from paper_figures import FIRST, TABLE_1_GAIN
from runner import Place, finished, read_record
from scipy import stats
from significance import tested
from sizes import Size

from spt_parlai.dashboard.world_logs import Turn, read_turns
from spt_parlai.metrics.gain import average_gain
from spt_parlai.metrics.registry import find

Metrics = dict[str, float]


def gain_columns(row: Metrics, base: Metrics) -> tuple[str, ...]:
    """The columns of table 1 that both runs have, except those in which the baseline is 0."""
    return tuple(c for c in FIRST if row.get(c) is not None and base.get(c))


def scale(column: str) -> float:
    """The factor from a metric to what its column shows."""
    metric = find(column)
    return 100.0 if metric is not None and metric.highest == 1 else 1.0


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation and 95% interval (Student's t) of one value per seed."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return {'mean': mean, 'sd': None, 'interval': None, 'n': n}
    sd = float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    return {'mean': mean, 'sd': sd, 'interval': [mean - half, mean + half], 'n': n}


def metrics_of(
    row: Row, size: Size, seeds: Sequence[int], place: Place, corpus: str | None = None
) -> dict[int, Metrics]:
    """seed → metrics of the evaluation, for all finished seeds. An agent without a seed has the same for each.

    :param corpus: one of the corpora of the evaluation; None: all of them together.
    """
    found = {}
    for seed in seeds:
        job = job_of(row, size, seed)
        record, (evaluation,) = read_record(place.record(job)), job.evaluations
        stage = finished(record, evaluation.key, dict(evaluation.options))
        if stage and (metrics := metrics_of_corpus(stage['metrics'], job, corpus)) is not None:
            hours = record['stages'].get('train', {}).get('epoch_hours')
            found[seed] = {**metrics, **({} if hours is None else {'epoch_hours': hours})}
    return found


def logs_of(row: Row, size: Size, seeds: Iterable[int], place: Place, corpus: str) -> dict[int, list[Turn]]:
    """seed → the turns of the evaluation on one corpus and the metrics that are tested, where the log still exists."""
    found = {}
    for seed in seeds:
        job = job_of(row, size, seed)
        path = world_logs(place.folder(job), job.evaluations[0].key, job)[corpus]
        if path.exists():
            found[seed] = [turn._replace(metrics=tested(turn.metrics)) for turn in read_turns(path)]
    return found


def mark_best(rows: Sequence[dict[str, Any]]) -> None:
    """Give every row `best`: the columns in which no other row of its LLM is better, as far as the table shows."""
    for row in rows:
        row['best'] = []
        rivals = [other for other in rows if other['llm'] == row['llm']]
        for column, own in row['cells'].items():
            metric = find(column.removesuffix('_equal'))
            means = [round(other['cells'][column]['mean'], 2) for other in rivals if column in other['cells']]
            if metric is None or metric.lower_is_better is None or len(set(means)) < 2:
                continue
            if round(own['mean'], 2) == (min(means) if metric.lower_is_better else max(means)):
                row['best'].append(column)


def build(
    table: TableOfRows, size: Size, seeds: Sequence[int], place: Place, models: Models = NO_MODELS
) -> list[dict[str, Any]]:
    """A table as plain values. Where runs were evaluated on several corpora, the means of the corpora are the first
    table, and one for each corpus follows, with the rows that were evaluated on it. The table's `further` measures are
    a table of their own.
    """
    measures = Measures(place.out / 'cache', models)
    tasks = [size.tasks[row.method.task] for row in table.rows]
    corpora = list(dict.fromkeys(corpus for task in tasks for corpus in corpora_of(task)))
    if len(corpora) == 1:
        return _split(_of_corpus(table, size, seeds, place, corpora[0], measures), table)
    of_all = [row for row, task in zip(table.rows, tasks, strict=True) if len(corpora_of(task)) == len(corpora)]
    parts = [_of_corpus(table._replace(rows=of_all, further=()), size, seeds, place, None, measures)] if of_all else []
    for n, corpus in enumerate(corpora, 1):
        rows = [row for row, task in zip(table.rows, tasks, strict=True) if corpus in corpora_of(task)]
        named = table._replace(name=f'{table.name}-{n}', title=f'{table.title}: {title_of(corpus)}', rows=rows)
        parts += _split(_of_corpus(named, size, seeds, place, corpus, measures), named)
    return parts


def _split(built: dict[str, Any], table: TableOfRows) -> list[dict[str, Any]]:
    """A built table without its further columns, and a second table with them, where there are any."""
    further = [c for c in table.further if any(c in row['cells'] for row in built['rows'])]
    first = _with_columns(built, [c for c in built['columns'] if c not in table.further])
    if not further:
        return [first]
    built = _with_columns(built, further)
    without = dict.fromkeys(('paper', 'paper_gain', 'paper_gain_without_dist'))
    rows = [{k: v for k, v in {**row, **without}.items() if not k.startswith('gain')} for row in built['rows']]
    absent = [ABSENT[c] for c in table.further if c in ABSENT and c not in further]
    if any(c.endswith('_equal') for c in further):
        absent.insert(0, f'DIST at equal counts: of {built["equal"][1]} words and {built["equal"][2]} pairs of them.')
    second = {'name': f'{table.name}-further', 'title': f'{built["title"]}: diversity, persona, ranking'}
    return [first, {**built, **second, 'gain_columns': [], 'rows': rows, 'remarks': absent}]


def _with_columns(built: dict[str, Any], columns: list[str]) -> dict[str, Any]:
    kept = [{**row, 'cells': {c: v for c, v in row['cells'].items() if c in columns}} for row in built['rows']]
    return {**built, 'columns': columns, 'rows': kept}


def _of_corpus(
    table: TableOfRows, size: Size, seeds: Sequence[int], place: Place, corpus: str | None, measures: Measures
) -> dict[str, Any]:
    """A table of one corpus, or of the means of all. A row's gain is computed seed by seed, relative to `against`."""
    measured = {row.label: metrics_of(row, size, seeds, place, corpus) for row in table.rows}
    by_label = {row.label: row for row in table.rows}
    logs: dict[str, dict[int, list[Turn]]] = {}
    if corpus is not None:
        logs = {label: logs_of(by_label[label], size, runs, place, corpus) for label, runs in measured.items()}
    equal = _measure(measured, logs, measures) if table.further or measures.models.bertscore else {}
    columns = (*table.columns, *table.further)
    rows, shared = [], None
    for row in table.rows:
        runs = measured[row.label]
        entry: dict[str, Any] = {
            'label': row.label,
            'llm': row.llm,
            'seeds': sorted(runs),
            'runs': [job_of(row, size, seed).name for seed in sorted(runs)],
            'against': row.against,
            'paper': row.paper,
            'paper_gain': TABLE_1_GAIN.get(row.label) if table.name == 'table1' else None,
            'paper_gain_without_dist': _papers_gain(row, by_label) if table.name == 'table1' else None,
            'cells': {
                c: spread([scale(c) * runs[s][c] for s in sorted(runs)][: None if row.method.seeded else 1])
                for c in columns
                if runs and all(c in m for m in runs.values())
            },
        }
        pairs = [(runs[s], measured[row.against][s]) for s in sorted(runs) if s in measured.get(row.against or '', {})]
        if pairs:
            shared = [c for c in FIRST if all(c in gain_columns(*pair) for pair in pairs)]
            entry['gain'] = spread([average_gain(*pair, shared) for pair in pairs])
            without = [c for c in shared if not c.startswith('dist')]
            entry['gain_without_dist'] = spread([average_gain(*pair, without) for pair in pairs]) if without else None
            entry['gain_by_column'] = {c: spread([average_gain(*pair, [c]) for pair in pairs]) for c in shared}
            ours, theirs = (logs.get(label, {}) for label in (row.label, row.against))
            if both := sorted(ours.keys() & theirs.keys()):
                entry['p'] = measures.p_values([ours[s] for s in both], [theirs[s] for s in both], equal)
        rows.append(entry)
    mark_best(rows)
    shown = [c for c in columns if any(c in row['cells'] for row in rows)] or list(table.columns)
    return {
        'name': table.name,
        'title': table.title,
        'columns': shown,
        'gain_columns': list(shared or ()),
        'equal': equal,
        'rows': rows,
    }


def _measure(
    measured: dict[str, dict[int, Metrics]], logs: dict[str, dict[int, list[Turn]]], measures: Measures
) -> dict[int, int]:
    """Add what world logs tell to the metrics, and each reply's part to the logs; return the equal counts of DIST."""
    equal = (
        smallest_counts([log for of_seeds in logs.values() for log in of_seeds.values()]) if any(logs.values()) else {}
    )
    for label, of_seeds in logs.items():
        for seed, log in of_seeds.items():
            of_seeds[seed] = log = measures.scored(log)
            measured[label][seed] = {**measures.of_log(log), **at_equal_counts(log, equal), **measured[label][seed]}
    return equal


def _papers_gain(row: Row, by_label: dict[str, Row]) -> float | None:
    """The paper's AVG↑ without DIST, which it does not report but which follows from its figures."""
    base = by_label.get(row.against or '')
    if base is None or not row.paper or not base.paper:
        return None
    return average_gain(row.paper, base.paper, [c for c in gain_columns(row.paper, base.paper) if 'dist' not in c])
