"""The corpora of a run. `eval_model -t A,B` reports every metric as `A/metric` and `B/metric`, besides their mean, and
writes a world log for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from grid import Job

from spt_parlai.dashboard.world_logs import Turn, read_turns

NAMES = {
    'convai2': 'ConvAI2',
    'dailydialog': 'DailyDialog',
    'msc': 'Multi-Session Chat',
    'Taskmaster4Teacher': 'Taskmaster-4',
    'TopicalChatTeacher': 'Topical-Chat',
    'WizardOfWikipediaTeacher': 'Wizard of Wikipedia',
}


def corpora_of(task: str) -> tuple[str, ...]:
    """The tasks that ParlAI's option `-t` names."""
    return tuple(task.split(','))


def title_of(corpus: str) -> str:
    """A corpus as people write it: the last part of the task's name that `NAMES` has, or else the task itself."""
    parts = corpus.replace('.', ':').split(':')
    return next((NAMES[part] for part in reversed(parts) if part in NAMES), corpus)


def metrics_of_corpus(metrics: Mapping[str, float], job: Job, corpus: str | None) -> dict[str, float] | None:
    """A report's metrics of one corpus, or (None) of all together; None if the job was not evaluated on it."""
    corpora = corpora_of(job.task)
    if corpus is None:
        return dict(metrics)
    if corpus not in corpora:
        return None
    if len(corpora) == 1:
        return dict(metrics)
    return {name.removeprefix(f'{corpus}/'): v for name, v in metrics.items() if name.startswith(f'{corpus}/')}


def world_logs(folder: Path, key: str, job: Job) -> dict[str, Path]:
    """Corpus → the world log that the evaluation `key` writes for it into the folder."""
    corpora = corpora_of(job.task)
    if len(corpora) == 1:
        return {job.task: folder / f'{key}.jsonl'}
    return {corpus: folder / f'{key}_{corpus}.jsonl' for corpus in corpora}  # as ParlAI names them


def read_logs(logs: Mapping[str, Path]) -> list[Turn]:
    """The turns of several world logs one after the other, with different numbers for all dialogues."""
    turns: list[Turn] = []
    for path in logs.values():
        first = 1 + max((turn.dialogue for turn in turns), default=-1)
        turns += [turn._replace(dialogue=first + turn.dialogue) for turn in read_turns(path)]
    return turns
