"""What ParlAI and this package leave beside a model file, as plain values for the page.

A run is its `MODEL.metrics.jsonl` and `MODEL.trainstats`. World logs in the same folder add the replies of evaluations.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from spt_parlai.checkpoints import metrics_log
from spt_parlai.errors import UsageError

_ENDINGS = ('.metrics.jsonl', '.checkpoint.trainstats', '.trainstats')
_STEP = ('train_steps', 'total_epochs', 'train_time')


def find_runs(given: Iterable[Path]) -> list[Path]:
    """The model files of the runs that are named: by their model file, or by a folder that holds some.

    :raises UsageError: for a path at which there is no run.
    """
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            runs = sorted({_model_file(file) for ending in _ENDINGS for file in path.rglob(f'*{ending}')})
        else:
            runs = [path] if any(Path(f'{path}{ending}').exists() for ending in _ENDINGS) else []
        if not runs:
            raise UsageError(f'{path}: no training run has left reports there; give a model file, or a folder of runs.')
        found += runs
    return list(dict.fromkeys(found))


def _model_file(file: Path) -> Path:
    ending = next(ending for ending in _ENDINGS if file.name.endswith(ending))
    return file.with_name(file.name.removesuffix(ending))


def files_of(model_file: Path) -> list[Path]:
    """The files that a run is read from, as far as they exist."""
    beside = [Path(f'{model_file}{ending}') for ending in (*_ENDINGS, '.opt', '.checkpoint.opt')]
    return [file for file in (*beside, *_world_logs(model_file)) if file.exists()]


def read_run(model_file: Path) -> dict[str, Any]:
    """The options and reports of a run.

    Returns `options`; `train` and `valid`, lists of reports with numbers alone; `replies`, what `--log-replies` wrote;
    `final`, the reports on the best model by fold; `best`, step and value of the best validation; `time_left` in
    seconds, None where nothing says; `finished`; `updated`, in seconds since 1970.
    """
    stats = _json(Path(f'{model_file}.trainstats')) or _json(Path(f'{model_file}.checkpoint.trainstats'))
    options = _json(Path(f'{model_file}.opt')) or _json(Path(f'{model_file}.checkpoint.opt'))
    train = [*stats.get('train_reports', ())]
    valid = [*stats.get('valid_reports', ())]
    replies = []
    entries = metrics_log.read(metrics_log.path_of(model_file))
    if entries:  # written by a run of this version, and newer than the rest
        options = next((entry for entry in entries if entry['kind'] == 'options'), options)
        train, valid, replies = ([e for e in entries if e['kind'] == kind] for kind in ('train', 'valid', 'replies'))
    last = max((report.get('parleys', 0) for report in (*train, *valid)), default=0)
    final = {fold: stats.get(f'final_{fold}_report') for fold in ('valid', 'test')}
    written = [file.stat().st_mtime for file in files_of(model_file)]
    return {
        'path': str(model_file),
        'options': {name: value for name, value in options.items() if name != 'kind'},
        'train': [_numbers(report) for report in train],
        'valid': [_numbers(report) for report in valid],
        'replies': replies,
        'final': {fold: _numbers(report) for fold, report in final.items() if report},
        'best': _best(valid, options),
        'time_left': train[-1].get('time_left') if train else None,
        'finished': bool(final['valid']) and stats.get('parleys', 0) >= last,
        'updated': max(written, default=0.0),
    }


def _best(valid: Sequence[dict[str, Any]], options: dict[str, Any]) -> dict[str, Any] | None:
    metric = options.get('validation_metric') or 'ppl'
    reported = [report for report in valid if isinstance(report.get(metric), (int, float))]
    if not reported:
        return None
    choose = max if options.get('validation_metric_mode') == 'max' else min
    report = choose(reported, key=lambda report: report[metric])
    return {'metric': metric, 'value': report[metric], 'train_steps': report.get('train_steps')}


def _numbers(report: dict[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in report.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def _json(path: Path) -> dict[str, Any]:
    """The content of a file with a JSON object, {} if there is none, or none yet."""
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(path.read_text(encoding='utf-8'))
        if isinstance(value, dict):
            return value
    return {}


def named(model_files: Sequence[Path]) -> list[str]:
    """Short and different names of runs: their paths without the parts that all of them share."""
    parts = [file.absolute().parts for file in model_files]
    if len(parts) == 1:
        return [parts[0][-2]]
    start = 0
    while len({p[start : start + 1] for p in parts}) == 1:
        start += 1
    end = 0
    while len({p[len(p) - 1 - end :] for p in parts}) == 1:
        end += 1
    return ['/'.join(p[start : len(p) - end] or p[-1:]) for p in parts]


# ---- world logs ------------------------------------------------------------------------------------------


def read_replies(model_file: Path) -> list[dict[str, Any]]:
    """All turns of the world logs beside a model file, with the name of the `log`."""
    found = []
    for log in _world_logs(model_file):
        from spt_parlai.dashboard.world_logs import read_turns  # it imports ParlAI, which takes seconds

        turns = [turn._asdict() for turn in read_turns(log, trimmed=False)]
        found += [{'log': log.stem, **{k: v for k, v in turn.items() if k != 'metrics'}} for turn in turns]
    return found


def _world_logs(model_file: Path) -> Iterator[Path]:
    """The world logs in the folder of a model file, without those whose metadata names another one."""
    for log in sorted(model_file.parent.glob('*.jsonl')):
        if log.name.endswith('.metrics.jsonl'):
            continue
        metadata = _json(log.with_suffix('.metadata'))
        evaluated = (metadata.get('opt') or {}).get('model_file')  # None: an agent without a model file
        if metadata and (evaluated is None or Path(evaluated).name == model_file.name):
            yield log
