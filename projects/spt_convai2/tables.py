"""The paper's tables from finished runs: mean ± sd over seeds, gain over PT with its interval, the paper's figures."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from corpora import corpora_of, metrics_of_corpus, title_of, world_logs
from grid import Row, TableOfRows, job_of
from paper_figures import FIRST, TABLE_1_GAIN
from runner import Place, finished, read_record
from scipy import stats
from significance import p_values
from sizes import Size

from spt_parlai.dashboard.world_logs import Turn, read_turns
from spt_parlai.metrics.gain import average_gain
from spt_parlai.metrics.registry import find, is_percentage

TITLES = {
    'unigram_f1': 'F1',
    'sacrebleu': 'BLEU',
    'rouge1': 'R-1',
    'rouge2': 'R-2',
    'rougeL': 'R-L',
    'bertscore_f1': 'BERT F1',
    'bertscore_p': 'BERT P',
    'bertscore_r': 'BERT R',
    'dist1': 'DIST-1',
    'dist2': 'DIST-2',
    'dist': 'DIST avg',
    'ppl': 'ppl',
    'persona_bleu': 'persona BLEU',
    'epoch_hours': 'hours per epoch',
    'selected_gain': 'selected gain',
    'best_gain': 'best gain',
    **{f'persona_bleu_{n}': f'{n}-gram' for n in range(1, 5)},
}
GAINS = ('selected_gain', 'best_gain')
Metrics = dict[str, float]


def gain_columns(row: Metrics, base: Metrics) -> tuple[str, ...]:
    """The columns of table 1 that both runs have, except those in which the baseline is 0."""
    return tuple(c for c in FIRST if row.get(c) is not None and base.get(c))


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


def logs_of(row: Row, size: Size, seeds: Sequence[int], place: Place, corpus: str) -> list[list[Turn]]:
    """The turns of the evaluation of each of these seeds on one corpus."""
    jobs = [job_of(row, size, seed) for seed in seeds]
    return [read_turns(world_logs(place.folder(job), job.evaluations[0].key, job)[corpus]) for job in jobs]


def mark_best(rows: Sequence[dict[str, Any]]) -> None:
    """Give every row `best`: the columns in which no other row of its LLM is better, as far as the table shows."""
    for row in rows:
        row['best'] = []
        rivals = [other for other in rows if other['llm'] == row['llm']]
        for column, own in row['cells'].items():
            metric = find(column)
            means = [round(other['cells'][column]['mean'], 2) for other in rivals if column in other['cells']]
            if metric is None or metric.lower_is_better is None or len(set(means)) < 2:
                continue
            if round(own['mean'], 2) == (min(means) if metric.lower_is_better else max(means)):
                row['best'].append(column)


def build(table: TableOfRows, size: Size, seeds: Sequence[int], place: Place) -> list[dict[str, Any]]:
    """A table as plain values. Where runs were evaluated on several corpora, the means of the corpora are the first
    table, and one for each corpus follows, with the rows that were evaluated on it.
    """
    tasks = [size.tasks[row.method.task] for row in table.rows]
    corpora = list(dict.fromkeys(corpus for task in tasks for corpus in corpora_of(task)))
    if len(corpora) == 1:
        return [_of_corpus(table, size, seeds, place, corpora[0])]
    of_all = [row for row, task in zip(table.rows, tasks, strict=True) if len(corpora_of(task)) == len(corpora)]
    parts = [] if not of_all else [_of_corpus(table._replace(rows=of_all), size, seeds, place, None)]
    for n, corpus in enumerate(corpora, 1):
        rows = [row for row, task in zip(table.rows, tasks, strict=True) if corpus in corpora_of(task)]
        named = table._replace(name=f'{table.name}-{n}', title=f'{table.title}: {title_of(corpus)}', rows=rows)
        parts.append(_of_corpus(named, size, seeds, place, corpus))
    return parts


def _of_corpus(
    table: TableOfRows, size: Size, seeds: Sequence[int], place: Place, corpus: str | None
) -> dict[str, Any]:
    """A table of one corpus, or of the means of all. A row's gain is computed seed by seed, relative to `against`."""
    measured = {row.label: metrics_of(row, size, seeds, place, corpus) for row in table.rows}
    by_label = {row.label: row for row in table.rows}
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
            'cells': {
                c: spread([runs[s][c] for s in sorted(runs)][: None if row.method.seeded else 1])
                for c in table.columns
                if runs and all(c in m for m in runs.values())
            },
        }
        pairs = [(runs[s], measured[row.against][s]) for s in sorted(runs) if s in measured.get(row.against or '', {})]
        if pairs:
            shared = [c for c in FIRST if all(c in gain_columns(*pair) for pair in pairs)]
            entry['gain'] = spread([average_gain(*pair, shared) for pair in pairs])
            entry['gain_by_column'] = {c: spread([average_gain(*pair, [c]) for pair in pairs]) for c in shared}
            both = [s for s in sorted(runs) if s in measured[row.against]]
            if corpus is not None:
                ours, theirs = (logs_of(one, size, both, place, corpus) for one in (row, by_label[row.against]))
                entry['p'] = p_values(ours, theirs)
        rows.append(entry)
    mark_best(rows)
    columns = [c for c in table.columns if any(c in row['cells'] for row in rows)] or list(table.columns)
    return {
        'name': table.name,
        'title': table.title,
        'columns': columns,
        'gain_columns': list(shared or ()),
        'rows': rows,
    }


# ---- text ------------------------------------------------------------------------------------------------


def cell(value: dict[str, Any] | None, digits: int = 2) -> str:
    """Mean ± standard deviation of a `spread`."""
    if value is None:
        return '–'
    return f'{value["mean"]:.{digits}f}' + ('' if value['sd'] is None else f' ± {value["sd"]:.{digits}f}')


def gain_text(value: dict[str, Any] | None) -> str:
    """A gain in percent with its interval."""
    if value is None or math.isnan(value['mean']):
        return '–'
    interval = value['interval']
    return f'{value["mean"]:+.1f}%' + ('' if interval is None else f' [{interval[0]:+.1f}, {interval[1]:+.1f}]')


def figure_text(value: float | None) -> str:
    """A figure of the paper."""
    return '–' if value is None else 'NaN' if math.isnan(value) else f'{value:.2f}'


def mark(p: float | None) -> str:
    """The sign of a p value, as `SIGNS` explains it."""
    return '' if p is None or p >= 0.05 else '‡' if p < 0.01 else '†'


SIGNS = (
    '† p < 0.05, ‡ p < 0.01: it differs from the row that AVG↑ is relative to (permutation of dialogues; BLEU: of '
    'replies; not corrected for the number of tests).'
)


def lines(table: dict[str, Any], bold: Callable[[str], str] = str) -> list[list[str]]:
    """Header and rows as text. A row that the paper has is followed by the paper's figures.

    :param bold: what is done to the best of its LLM.
    """
    gains = any('gain' in row or row['paper_gain'] for row in table['rows'])
    result = [['', *(TITLES[c] for c in table['columns']), *(['AVG↑'] if gains else [])]]
    for row in table['rows']:
        digits = {c: 3 if c in ('epoch_hours', *GAINS) else 2 for c in table['columns']}
        result.append(
            [
                row['label'],
                *(
                    (bold if c in row['best'] else str)(
                        cell(row['cells'].get(c), digits[c]) + mark(row.get('p', {}).get(c))
                    )
                    for c in table['columns']
                ),
                *([gain_text(row.get('gain'))] if gains else []),
            ]
        )
        if row['paper']:
            gain = '–' if row['paper_gain'] is None else f'{row["paper_gain"]:+.1f}%'
            result.append(
                ['the paper', *(figure_text(row['paper'].get(c)) for c in table['columns']), *([gain] if gains else [])]
            )
    return result


def note(table: dict[str, Any]) -> str:
    """The sentence below a table that explains its numbers."""
    counts = sorted({len(row['seeds']) for row in table['rows']})
    seeds = f'{counts[0]}' if len(counts) == 1 else f'{counts[0]} to {counts[-1]}'
    others = [TITLES[column] for column in table['columns'] if not is_percentage(column)]
    but = f' except for {", ".join(others)}' if others else ''
    said = f'Mean ± sd over {seeds} seed{"s" * (counts[-1] != 1)}, in percent{but}.'
    if table['gain_columns']:
        against = ', '.join(sorted({row['against'] for row in table['rows'] if 'gain' in row}))
        columns = ', '.join(TITLES[c] for c in table['gain_columns'])
        said += (
            f' AVG↑: mean relative gain over {against}, seed by seed, in {columns}; '
            'in brackets its 95% interval over seeds.'
        )
    if any(row['best'] for row in table['rows']):
        said += ' Bold: the best of its LLM.'
    if any(mark(p) for row in table['rows'] for p in row.get('p', {}).values()):
        said += f' {SIGNS}'
    return said


def markdown(table: dict[str, Any]) -> str:
    """A table as Markdown, with its title and note."""
    return _markdown(title(table), lines(table, lambda text: f'**{text}**'), note(table))


def _markdown(title: str, lines: Sequence[Sequence[str]], note: str) -> str:
    written = ['| ' + ' | '.join(line) + ' |' for line in (lines[0], ['---'] * len(lines[0]), *lines[1:])]
    return '\n'.join([f'### {title}', '', *written, '', note, ''])


_LATEX = {
    **{sign: f'\\{sign}' for sign in '%&_#$'},
    '±': r'$\pm$',
    '↑': r'$\uparrow$',
    '†': r'$^{\dagger}$',
    '‡': r'$^{\ddagger}$',
    'α': r'$\alpha$',
    'λ': r'$\lambda$',
    'τ': r'$\tau$',
    '–': '--',
    '<': '$<$',
    '>': '$>$',
}


def latex(table: dict[str, Any]) -> str:
    """A table for LaTeX's booktabs, with its title as caption."""

    def escaped(text: str) -> str:
        return ''.join(_LATEX.get(sign, sign) for sign in text)

    header, *rows = lines(table, lambda text: f'\0{text}\1')  # signs that no text holds
    written = [
        ' & '.join(escaped(text).replace('\0', r'\textbf{').replace('\1', '}') for text in line) + r' \\'
        for line in (header, *rows)
    ]
    return '\n'.join(
        [
            r'\begin{table}',
            r'\centering',
            rf'\caption{{{escaped(table["title"])}. {escaped(note(table))}}}',
            rf'\label{{tab:{table["name"]}}}',
            rf'\begin{{tabular}}{{l{"r" * (len(header) - 1)}}}',
            r'\toprule',
            written[0],
            r'\midrule',
            *written[1:],
            r'\bottomrule',
            r'\end{tabular}',
            r'\end{table}',
            '',
        ]
    )


def write_csv(tables: Sequence[dict[str, Any]], path: Path) -> None:
    """A line for each number: its row and metric, mean, sd, 95% interval, p against another row, the paper's number."""
    header = ('table', 'row', 'llm', 'seeds', 'metric', 'mean', 'sd', 'low', 'high', 'against', 'p', 'paper')
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for table in tables:
            for row in table['rows']:
                cells = {**row['cells'], **({'gain': row['gain']} if 'gain' in row else {})}
                paper = {**(row['paper'] or {}), 'gain': row['paper_gain']}
                for metric, value in cells.items():
                    writer.writerow(
                        [
                            table['name'],
                            row['label'],
                            row['llm'],
                            ' '.join(map(str, row['seeds'])),
                            metric,
                            value['mean'],
                            value['sd'],
                            *(value['interval'] or (None, None)),
                            row['against'],
                            row.get('p', {}).get(metric),
                            paper.get(metric),
                        ]
                    )


def title(table: dict[str, Any]) -> str:
    """A table's number, if the paper has it, and its title."""
    number = table['name'].removeprefix('table')
    if number == table['name']:
        return table['title']
    return f'Table {number}{" and 8" if number == "4" else ""}. {table["title"]}'


# ---- is every prompt used? -------------------------------------------------------------------------------


def usage(tables: Sequence[TableOfRows], size: Size, seeds: Sequence[int], place: Place) -> list[dict[str, Any]]:
    """For every row that selects prompts: how evenly it uses them, and what the selection is worth in nats."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for table in tables:
        for row in table.rows:
            if not row.method.agent.startswith('Spt') or row.method.train.get('num_prompts') == 1:
                continue
            job, K = job_of(row, size, 0), row.method.train['num_prompts']
            label = row.label if 'SPT' in row.label else f'SPT, {row.label}'
            several = len(corpora_of(job.task)) > 1
            for corpus in corpora_of(job.task):
                runs = metrics_of(row, size, seeds, place, corpus)
                if not runs:
                    continue
                shares = [[m[f'prompt_usage_{i}'] for i in range(K)] for m in runs.values()]
                found.setdefault(
                    (job.name, job.evaluations[0].key, corpus),
                    {
                        'label': f'{table.name.replace("table", "table ")}: {label}'
                        + (f', {title_of(corpus)}' if several else ''),
                        'shares': shares if several else [sorted(s, reverse=True) for s in shares],
                        'entropy': spread([m['prompt_usage_entropy'] for m in runs.values()]),
                        **{name: spread([m[name] for m in runs.values()]) for name in GAINS},
                    },
                )
    return list(found.values())


USAGE_TITLE = 'Is every prompt used?'
USAGE_NOTE = (
    'Entropy over its maximum: 1 is even use, 0 is a retriever that has collapsed onto one prompt. '
    'Gains: the NLL per token of the mean prompt minus that of the selected prompt, and of the best one in hindsight.'
)


def usage_lines(usage: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Header and rows as text."""
    header = [
        '',
        'entropy of use',
        'nats gained by the selection',
        'by the best selection',
        'share of each prompt, largest first (on several corpora: in their order), one list per seed',
    ]
    return [
        header,
        *(
            [
                row['label'],
                cell(row['entropy']),
                *(cell(row[name], 3) for name in GAINS),
                '  ·  '.join(' '.join(f'{100 * share:.0f}%' for share in shares) for shares in row['shares']),
            ]
            for row in usage
        ),
    ]


def write(tables: Sequence[dict[str, Any]], usage: Sequence[dict[str, Any]], folder: Path) -> Path:
    """Write all tables into the folder: `tables.md`, `tables.tex` (of booktabs) and `tables.csv` (a number a line)."""
    path = folder / 'tables.md'
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [*map(markdown, tables), *([_markdown(USAGE_TITLE, usage_lines(usage), USAGE_NOTE)] if usage else [])]
    path.write_text('\n'.join(written), encoding='utf-8')
    path.with_suffix('.tex').write_text('\n'.join(map(latex, tables)), encoding='utf-8')
    write_csv(tables, path.with_suffix('.csv'))
    return path
