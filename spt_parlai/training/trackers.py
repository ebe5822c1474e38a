"""What TensorBoard and Weights & Biases show of a run besides ParlAI's curves, which are one chart for each number.

Both get the dashboard's views: several numbers in one chart, the options, the replies of `--log-replies` as text, and
histograms of the prompts and their scores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

CHARTS = {  # title → (names of log entries, folds)
    'perplexity': (('ppl',), ('train', 'valid')),
    'prompt use': ((r'prompt_usage_\d+',), ('valid',)),
    'evenness of prompt use': (('prompt_usage_entropy',), ('train', 'valid')),
    'gain of the selected and the best prompt, in nats': (('selected_gain', 'best_gain'), ('valid',)),
    'losses': (('selection', 'contrastive', 'fusion'), ('train', 'valid')),
}
Histograms = dict[str, list[float]]
Reports = Sequence[Mapping[str, Any]]


class Tracker(Protocol):
    """One of the two."""

    def begin(self, options: Mapping[str, Any]) -> None:
        """Show the options and prepare the charts."""

    def validated(self, step: int, reports: Mapping[str, Reports], histograms: Histograms, replies: Reports) -> None:
        """Show what there is after a validation.

        :param step: number of batches, as in ParlAI's curves.
        :param reports: all reports so far, by fold.
        :param replies: see `rows_of`.
        """

    def finished(self, options: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        """Show the report of the best model, and the options by which runs are compared."""


def trackers_of(loop) -> list[Tracker]:
    """Those that a TrainLoop writes to: `--tensorboard-log`, `--wandb-log`."""
    trackers: list[Tracker] = []
    if hasattr(loop, 'tb_logger'):
        trackers.append(TensorBoard(loop.tb_logger.writer))
    if hasattr(loop, 'wb_logger'):
        trackers.append(WeightsAndBiases(loop.wb_logger.run))
    return trackers


def histograms_of(soft_prompts: Tensor, contexts: Reports) -> Histograms:
    """The norm of every token of each prompt, and its scores for the contexts of `--log-replies`.

    :param soft_prompts: float32 [K, L, D].
    """
    norms = soft_prompts.detach().norm(dim=-1).tolist() if soft_prompts.numel() else []
    found = {f'token_norms/prompt_{k}': values for k, values in enumerate(norms)}
    scores = zip(*(context['scores'] for context in contexts), strict=True)
    return found | {f'scores/prompt_{k}': list(values) for k, values in enumerate(scores)}


def rows_of(contexts: Reports) -> list[dict[str, Any]]:
    """A row for every context and prompt: `context`, `prompt`, `score`, `selected` and `reply`."""
    return [
        {
            'context': ' / '.join([' '.join(context['persona']), *context['dialogue']]),
            'prompt': k,
            'score': score,
            'selected': k == context['selected'],
            'reply': reply,
        }
        for context in contexts
        for k, (score, reply) in enumerate(zip(context['scores'], context['replies'], strict=True))
    ]


def _table(rows: Reports) -> str:
    """Rows as Markdown."""

    def line(cells) -> str:
        return '| ' + ' | '.join(str(cell).replace('|', '\\|').replace('\n', ' ') for cell in cells) + ' |'

    return '\n'.join([line(rows[0]), line('---' for _ in rows[0]), *(line(row.values()) for row in rows)])


class TensorBoard:
    """Custom scalars, text, histograms and hparams. writer: of tensorboardX."""

    def __init__(self, writer):
        self.writer = writer

    def begin(self, options: Mapping[str, Any]) -> None:
        layout = {
            title: ['Multiline', [f'^{name}/{fold}$' for name in names for fold in folds]]
            for title, (names, folds) in CHARTS.items()
        }
        self.writer.add_custom_scalars({'Selective Prompt Tuning': layout})
        self.writer.add_text('options', _table([{'option': k, 'value': v} for k, v in sorted(options.items())]))

    def validated(self, step: int, reports: Mapping[str, Reports], histograms: Histograms, replies: Reports) -> None:
        import numpy as np

        for name, values in histograms.items():
            self.writer.add_histogram(name, np.array(values), step)
        if replies:
            self.writer.add_text('replies', _table(replies), step)

    def finished(self, options: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        plain = {k: v if isinstance(v, (bool, int, float, str)) else json.dumps(v) for k, v in options.items()}
        numbers = {f'best/{k}': float(v) for k, v in report.items() if isinstance(v, (int, float))}
        self.writer.add_hparams(plain, numbers, name='best')
        self.writer.flush()


class WeightsAndBiases:
    """Charts of several numbers, tables and histograms; ParlAI has given the options. run: of wandb."""

    def __init__(self, run):
        self.run = run

    def begin(self, options: Mapping[str, Any]) -> None:
        self.run.define_metric('*', step_metric='custom_step')

    def validated(self, step: int, reports: Mapping[str, Reports], histograms: Histograms, replies: Reports) -> None:
        import wandb

        shown: dict[str, Any] = {name: wandb.Histogram(values) for name, values in histograms.items()}
        for title, (patterns, folds) in CHARTS.items():
            curves = {
                f'{name}/{fold}': ([r['parleys'] for r in has], [r[name] for r in has])
                for fold in folds
                for name in sorted({name for r in reports[fold] for name in r})
                if any(re.fullmatch(pattern, name) for pattern in patterns)
                and (has := [r for r in reports[fold] if name in r])
            }
            if curves:
                xs, ys = zip(*curves.values(), strict=True)
                shown[f'charts/{title}'] = wandb.plot.line_series([*xs], [*ys], [*curves], title, 'step')
        if replies:
            shown['replies'] = wandb.Table([*replies[0]], [[*row.values()] for row in replies])
        self.run.log({**shown, 'custom_step': step})

    def finished(self, options: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        pass  # ParlAI has closed the run
