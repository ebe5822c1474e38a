"""What a person reads of a report: one line while a run goes on, and at its end a table by what the metrics are about.

Files of reports keep every metric under its own name; only the printed forms are made here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """A metric, what it is in a few words, and the factor and unit in which it is printed."""

    name: str
    meaning: str
    unit: str = ''
    factor: float = 1.0


def _share(name: str, meaning: str) -> Row:
    return Row(name, meaning, '%', 100.0)


GROUPS: dict[str, tuple[Row, ...]] = {
    'quality': (
        Row('ppl', 'perplexity of a token'),
        Row('ppl_word', 'perplexity of a word'),
        _share('token_acc', 'tokens that are the most probable ones'),
        Row('unigram_f1', "words shared with the person's reply, F1", '%'),
        Row('sacrebleu', 'BLEU of all replies', '%'),
        Row('rouge1', 'ROUGE-1', '%'),
        Row('rouge2', 'ROUGE-2', '%'),
        Row('rougeL', 'ROUGE-L, the longest common subsequence', '%'),
        Row('meteor', 'METEOR', '%'),
        Row('bertscore_f1', 'BERTScore F1', '%'),
        Row('dist1', 'distinct words', '%'),
        Row('dist2', 'distinct pairs of words', '%'),
        Row('persona_bleu', 'BLEU against the persona', '%'),
        _share('hits@1', "candidates ranked first that are the person's"),
    ),
    'losses': (
        Row('spt_loss', 'the objective (eq. 6)'),
        Row('nll', 'prompt NLL, summed over the prompts (eq. 2)'),
        Row('selection', 'selection KL (eq. 3)'),
        Row('contrastive', 'context-prompt contrast (eq. 4)'),
        Row('fusion', 'fusion NLL (eq. 5)'),
    ),
    'prompts': (
        Row('prompt_usage', 'contexts that select each prompt, from prompt 0', '%', 100.0),
        Row('prompt_usage_entropy', '1: even use; 0: one prompt is always selected'),
        Row('prompt_information', 'what the context says of the prompt, at most ln K', 'nats'),
        Row('selected_gain', 'gain of the selected prompt over the mean of all', 'nats'),
        Row('best_gain', 'gain of the best prompt in hindsight', 'nats'),
    ),
    'speed and lengths': (
        Row('exs', 'replies evaluated'),
        Row('exps', 'replies a second'),
        Row('clen', 'length of a context', 'tokens'),
        Row('llen', "length of the person's reply", 'tokens'),
        Row('gen_n_toks', "length of the model's reply", 'tokens'),
        _share('ctrunc', 'contexts that were cut to the window'),
    ),
}
LINE = ('spt_loss', 'ppl', 'selection', 'contrastive', 'fusion')
_USAGE = re.compile(r'prompt_usage_(\d+)')


def usage(report: Mapping[str, object], prefix: str = '') -> list[float]:
    """The share of contexts that select each prompt, prompt 0 first; [] for a report without prompts."""
    numbers = sorted({int(m[1]) for key in report if (m := _USAGE.fullmatch(key.removeprefix(prefix)))})
    return [float(report[f'{prefix}prompt_usage_{k}']) for k in numbers if f'{prefix}prompt_usage_{k}' in report]  # type: ignore[arg-type]


def report_line(report: Mapping[str, object], names: Sequence[str] = LINE) -> str:
    """The metrics of these names that a report has, and the use of its prompts, in one line."""
    shown = [f'{name} {float(report[name]):.4g}' for name in names if name in report]  # type: ignore[arg-type]
    if shares := usage(report):
        shown.append(f'prompts {_shares(shares)} %')
    return '  '.join(shown)


def report_table(report: Mapping[str, object]) -> str:
    """The metrics of `GROUPS` that a report has, a row each with value, unit and meaning.

    A report of several tasks has a column for each of them after that of all tasks together.
    """
    tasks = list(dict.fromkeys(key.rpartition('/')[0] for key in report if key.endswith('/exs')))
    columns = ['', *(f'{task}/' for task in tasks)]
    lines: list[list[str]] = [['', 'all', *tasks, '']] if tasks else []
    for group, rows in GROUPS.items():
        of_group = []
        for row in rows:
            values = [_value(report, column, row) for column in columns]
            if any(values):
                of_group.append([f'  {row.name}', *values, ' '.join(filter(None, (row.unit.ljust(6), row.meaning)))])
        if of_group:
            lines += [[group, *[''] * (len(columns) + 1)], *of_group]
    return '\n'.join(_aligned(lines))


def _aligned(lines: list[list[str]]) -> Iterator[str]:
    """The cells of each line in columns; all but the first and the last to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *values, last in lines:
        cells = (value.rjust(width) for value, width in zip(values, widths[1:-1], strict=True))
        yield '  '.join((first.ljust(widths[0]), *cells, last)).rstrip()


def _value(report: Mapping[str, object], prefix: str, row: Row) -> str:
    if row.name == 'prompt_usage':
        return _shares(usage(report, prefix))
    value = report.get(prefix + row.name)
    return '' if value is None else _number(row.factor * float(value))  # type: ignore[arg-type]


def _number(value: float) -> str:
    return f'{value:,.0f}' if abs(value) >= 10_000 or value == int(value) else f'{value:.4g}'


def _shares(shares: list[float]) -> str:
    return ' '.join(f'{100 * share:.0f}' for share in shares)
