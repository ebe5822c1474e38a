"""Tables as text: lines of cells, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spt_parlai.metrics.registry import find

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
    'ent2': 'Ent-2',
    'ent4': 'Ent-4',
    'dist1_equal': 'DIST-1 at equal counts',
    'dist2_equal': 'DIST-2 at equal counts',
    'self_bleu': 'self-BLEU',
    'persona_f1': 'persona F1',
    'c_score': 'C.score',
    'hits@1': 'hits@1',
    'mauve': 'MAUVE',
    'persona_bleu': 'persona BLEU',
    'epoch_hours': 'hours per epoch',
    'selected_gain': 'selected gain',
    'best_gain': 'best gain',
    **{f'persona_bleu_{n}': f'{n}-gram' for n in range(1, 5)},
}
GAIN_TITLES = {'gain': 'AVG↑', 'gain_without_dist': 'AVG↑ without DIST'}


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


def in_percent(column: str) -> bool:
    """Whether a column shows percentages; ParlAI's shares, such as hits@1, are shown as such, too."""
    metric = find(column)
    return column.endswith('_equal') or (metric is not None and metric.highest in (1, 100))


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
    result = [['', *(TITLES[c] for c in table['columns']), *(GAIN_TITLES.values() if gains else [])]]
    for row in table['rows']:
        digits = {c: 3 if c in ('epoch_hours', 'selected_gain', 'best_gain') else 2 for c in table['columns']}
        result.append(
            [
                row['label'],
                *(
                    (bold if c in row['best'] else str)(
                        cell(row['cells'].get(c), digits[c]) + mark(row.get('p', {}).get(c))
                    )
                    for c in table['columns']
                ),
                *([gain_text(row.get(name)) for name in GAIN_TITLES] if gains else []),
            ]
        )
        if row['paper']:
            papers = [row.get(f'paper_{name}') for name in GAIN_TITLES] if gains else []
            papers = ['–' if gain is None else f'{gain:+.1f}%' for gain in papers]
            result.append(['the paper', *(figure_text(row['paper'].get(c)) for c in table['columns']), *papers])
    return result


def note(table: dict[str, Any]) -> str:
    """The sentence below a table that explains its numbers."""
    counts = sorted({len(row['seeds']) for row in table['rows']})
    seeds = f'{counts[0]}' if len(counts) == 1 else f'{counts[0]} to {counts[-1]}'
    others = [TITLES[column] for column in table['columns'] if not in_percent(column)]
    but = f' except for {", ".join(others)}' if others else ''
    said = f'Mean ± sd over {seeds} seed{"s" * (counts[-1] != 1)}, in percent{but}.'
    if table['gain_columns']:
        against = '; or '.join(sorted({row['against'] for row in table['rows'] if 'gain' in row}))
        columns = ', '.join(TITLES[c] for c in table['gain_columns'])
        said += (
            f' AVG↑: mean relative gain over {against}, seed by seed, in {columns}; '
            'in brackets its 95% interval over seeds.'
        )
    said += ''.join(f' {remark}' for remark in table.get('remarks', ()))
    if any(row['best'] for row in table['rows']):
        said += ' Bold: the best of its LLM.'
    if any(mark(row.get('p', {}).get(column)) for row in table['rows'] for column in table['columns']):
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
                cells = {**row['cells'], **{name: row[name] for name in GAIN_TITLES if row.get(name)}}
                paper = {**(row['paper'] or {}), **{name: row.get(f'paper_{name}') for name in GAIN_TITLES}}
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
    whole, dash, part = table['name'].partition('-')
    number = whole.removeprefix('table')
    if number == whole:
        return table['title']
    number = f'{number}{" and 8" if number == "4" else ""}{dash}{part}'
    return f'Table {number.replace("-further", ", further")}. {table["title"]}'


def write(tables: Sequence[dict[str, Any]], usage: dict[str, Any] | None, folder: Path) -> Path:
    """Write all tables into the folder: `tables.md`, `tables.tex` (of booktabs) and `tables.csv` (a number a line).

    :param usage: title, lines and note of the table of how prompts are used.
    """
    path = folder / 'tables.md'
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [*map(markdown, tables), *([_markdown(**usage)] if usage else [])]
    path.write_text('\n'.join(written), encoding='utf-8')
    path.with_suffix('.tex').write_text('\n'.join(map(latex, tables)), encoding='utf-8')
    write_csv(tables, path.with_suffix('.csv'))
    return path
