"""One HTML page with tables, embedded figures and commands. It loads nothing from the network."""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import table_text as t
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup


class Figure(NamedTuple):
    """A figure of the page. dialogues, names: content of figure 4, which the page also shows as text."""

    id: str
    short: str
    title: str
    caption: str
    path: Path
    dialogues: Sequence[dict[str, Any]] = ()
    names: tuple[str, str] = ('', '')


def _table(table: dict[str, Any]) -> dict[str, Any]:
    header, *lines = t.lines(table, lambda text: Markup('<b>{}</b>').format(text))
    runs = iter([[*zip(row['seeds'], row['runs'], strict=True)] for row in table['rows']])
    return {
        'name': table['name'],
        'short': t.title(table).split('.')[0],
        'title': t.title(table),
        'header': header,
        'rows': [{'cells': line, 'runs': [] if line[0] == 'the paper' else next(runs)} for line in lines],
        'note': t.note(table),
        'gains': sum(word in t.GAIN_TITLES.values() for word in header),
    }


def _run(record: dict[str, Any], browsed: Collection[str]) -> dict[str, Any]:
    seconds = sum(stage['seconds'] for stage in record['stages'].values())
    commands = '\n\n'.join(
        ' '.join(f'{k}={v}' for k, v in stage['environment'].items()) + ' ' + stage['command']
        for stage in record['stages'].values()
    )
    name = record['name']
    return {'name': name, 'seconds': f'{seconds:.0f} s', 'commands': commands, 'browsed': name in browsed}


def _about(records: Sequence[dict[str, Any]]) -> str:
    record = records[-1]
    machine, versions = record['machine'], ', '.join(f'{k} {v}' for k, v in record['versions'].items())
    gpus = f', {len(machine["gpus"])} × {machine["gpus"][0]}' if machine['gpus'] else ''
    hours = sum(stage['seconds'] for r in records for stage in r['stages'].values()) / 3600
    return (
        f'{len(records)} runs, {hours:.2f} process hours on {machine["cores"]} cores of {machine["cpu"]}{gpus}; '
        f'{versions}; commit {record["commit"]}.'
    )


def write(
    path: Path,
    title: str,
    subtitle: str,
    tables: Sequence[dict],
    usage: dict[str, Any] | None,
    figures: Sequence[Figure],
    records: Sequence[dict],
    browsed: Collection[str] = (),
) -> Path:
    """Write the page and return its path. usage: as in `table_text.write`; records: of all runs; browsed: the names
    of those whose curves and replies are in `runs.html`.
    """
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    drawn = [{**figure._asdict(), 'data': base64.b64encode(figure.path.read_bytes()).decode()} for figure in figures]
    page = templates.get_template('report.html.j2').render(
        title=title,
        subtitle=subtitle,
        tables=[_table(table) for table in tables],
        figures=drawn,
        usage=usage,
        runs=[_run(record, browsed) for record in records],
        about=_about(records) if records else 'There are no runs yet.',
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding='utf-8')
    return path
