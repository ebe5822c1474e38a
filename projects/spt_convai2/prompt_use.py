"""Is every prompt used, and what is the selection worth? A table of all rows that select prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from corpora import corpora_of, title_of
from grid import TableOfRows, job_of
from runner import Place
from sizes import Size
from table_text import cell
from tables import metrics_of, spread

GAINS = ('selected_gain', 'best_gain')


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


TITLE = 'Is every prompt used?'
NOTE = (
    'Entropy over its maximum: 1 is even use, 0 is a retriever that has collapsed onto one prompt. '
    'Gains: the NLL per token of the mean prompt minus that of the selected prompt, and of the best one in hindsight; '
    'in brackets their 95% intervals over seeds.'
)


def lines(usage: Sequence[dict[str, Any]]) -> list[list[str]]:
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
                *(cell(row[name], 3) + _interval(row[name]) for name in GAINS),
                '  ·  '.join(' '.join(f'{100 * share:.0f}%' for share in shares) for shares in row['shares']),
            ]
            for row in usage
        ),
    ]


def _interval(value: dict[str, Any]) -> str:
    return '' if value['interval'] is None else ' [{:+.3f}, {:+.3f}]'.format(*value['interval'])
