"""The paper's tables and figures as commands.

python projects/spt_convai2/experiments.py run table1 table2 --size small --data DATAPATH --jobs 2 --out runs/small
python projects/spt_convai2/experiments.py report --out runs/small      # tables, figures and one HTML page
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Annotated, NamedTuple

import beyond
import grid
import portalocker
import runner
import sizes
import table_text
import tables as made
import typer
from measures import NO_MODELS, Models
from rich.console import Console
from rich.table import Table

from spt_parlai.checkpoints.files import check_writable
from spt_parlai.errors import UsageError, naming

app = typer.Typer(
    add_completion=False, help=__doc__.splitlines()[0], no_args_is_help=True, pretty_exceptions_enable=False
)
console = Console(soft_wrap=True)
TABLES = {**grid.TABLES, **beyond.TABLES}


class Plan(NamedTuple):
    """What a command was asked to run, after all checks."""

    size: sizes.Size
    llms: tuple[str, ...]
    seeds: tuple[int, ...]
    tables: list[grid.TableOfRows]
    place: runner.Place
    at_once: int
    devices: list[int]

    @property
    def jobs(self) -> list[grid.Job]:
        return grid.jobs_of(self.tables, self.size, self.seeds)

    def only(self, texts: list[str]) -> Plan:
        """The same plan for the rows whose label holds one of these texts."""
        tables = [t._replace(rows=[r for r in t.rows if any(x in r.label for x in texts)]) for t in self.tables]
        if not any(table.rows for table in tables):
            labels = '; '.join(dict.fromkeys(row.label for table in self.tables for row in table.rows))
            raise UsageError(f'--rows {" ".join(texts)}: no row is called so; there are: {labels}.')
        return self._replace(tables=tables)


Names = Annotated[
    list[str], typer.Argument(help=f'What to run: {", ".join(TABLES)} (table8 is part of table4), or all.')
]
SizeName = Annotated[
    str,
    typer.Option('--size', help=f"{', '.join(sizes.SIZES)}: seconds, about an hour on two CPU cores, or the paper's."),
]
Llm = Annotated[
    list[str] | None,
    typer.Option(help='LLM: id, folder or "demo". Table 1 takes several; the other tables use the last one.'),
]
Data = Annotated[
    Path | None, typer.Option(help="ParlAI's datapath (default: its own, into which tasks are downloaded).")
]
Seeds = Annotated[str | None, typer.Option(help='Seeds, separated by commas (default: those of the size).')]
Jobs = Annotated[int | None, typer.Option(help='Number of runs at once (default: one per GPU, or else one per core).')]
Out = Annotated[Path, typer.Option(help='Folder for the runs and the report.')]
Settings = Annotated[
    str | None,
    typer.Option(
        help=f'{", ".join(sizes.SETTINGS)}, by commas. Table 1 takes several; the other tables use the last one.'
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option('--set', help='NAME=VALUE: an option for every training, such as max_train_steps=200.'),
]
SetEval = Annotated[
    list[str] | None,
    typer.Option('--set-eval', help='NAME=VALUE: an option for every evaluation, such as bertscore=FOLDER.'),
]


def plan(
    names: list[str],
    size_name: str,
    llm: list[str] | None,
    data: Path | None,
    seeds: str | None,
    jobs: int | None,
    out: Path,
    settings: str | None,
    train: list[str] | None,
    evaluate: list[str] | None,
) -> Plan:
    """Check everything before anything starts.

    :raises UsageError: naming the option and the way out.
    """
    size = sizes.SIZES.get(size_name)
    if size is None:
        raise UsageError(f'--size {size_name}: give one of {", ".join(sizes.SIZES)}.')
    if settings:
        unknown = [name for name in settings.split(',') if name not in sizes.SETTINGS]
        if unknown:
            raise UsageError(f'--settings {settings}: {unknown[0]!r} is not one of {", ".join(sizes.SETTINGS)}.')
        size = dataclasses.replace(size, settings=tuple(settings.split(',')))
    size = dataclasses.replace(
        size,
        train={**size.train, **_pairs(train, '--set')},
        evaluate={**size.evaluate, **_pairs(evaluate, '--set-eval')},
    )
    llms = tuple(_absolute(name) for name in llm or size.llms)
    try:
        chosen = tuple(int(seed) for seed in seeds.split(',')) if seeds else size.seeds
    except ValueError:
        raise UsageError(f'--seeds {seeds}: give whole numbers separated by commas, such as 1,2,3.') from None
    if jobs is not None and jobs < 1:
        raise UsageError(f'--jobs {jobs}: give at least 1.')
    if data is not None and not data.is_dir():
        raise UsageError(f'--data {data}: there is no such folder; give the one that holds ConvAI2/ and dailydialog/.')
    made = [_table(name, size, llms, size_name) for name in _tables(names)]
    devices = list(range(len(runner.gpus())))
    at_once = jobs or len(devices) or os.cpu_count() or 1
    threads = max(1, (os.cpu_count() or 1) // at_once)
    place = runner.Place(out.absolute(), None if data is None else str(data.absolute()), threads)
    return Plan(size, llms, chosen, made, place, at_once, devices)


def _tables(names: list[str]) -> list[str]:
    names = list(dict.fromkeys(grid.ALIASES.get(name, name) for name in names))
    if names == ['all']:
        return list(grid.TABLES)
    for name in names:
        if name in grid.BY_HAND:
            raise UsageError(f'{name} is judged by people: `sheet` makes the sheets and `score-sheets` evaluates them.')
        if name not in TABLES:
            raise UsageError(f'{name}: give {", ".join(TABLES)} or all.')
    return names


def _table(name: str, size: sizes.Size, llms: tuple[str, ...], size_name: str) -> grid.TableOfRows:
    if name in beyond.TABLES and 'mixed' not in size.tasks:
        fit = ', '.join(one for one, of in sizes.SIZES.items() if 'mixed' in of.tasks)
        raise UsageError(f'{name} --size {size_name}: this table has the sizes {fit}.')
    return TABLES[name](size, llms)


def _pairs(words: list[str] | None, option: str) -> dict[str, str]:
    for word in words or ():
        if '=' not in word:
            raise UsageError(f'{option} {word}: give NAME=VALUE.')
    return {name.replace('-', '_'): value for name, value in (word.split('=', 1) for word in words or ())}


def _absolute(llm: str) -> str:
    return str(Path(llm).absolute()) if Path(llm).exists() else llm


@app.command()
def run(
    names: Names,
    size: SizeName = 'smoke',
    llm: Llm = None,
    data: Data = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    out: Out = Path('runs/spt_convai2'),
    settings: Settings = None,
    set_: Set = None,
    set_eval: SetEval = None,
    rows: Annotated[
        list[str] | None, typer.Option(help='Only the rows whose label holds this text; several may be given.')
    ] = None,
    dry_run: Annotated[bool, typer.Option('--dry-run', help='Only print the commands of the missing runs.')] = False,
) -> None:
    """Train and evaluate what the tables need, then report. Finished runs are kept; interrupted ones continue."""
    asked = plan(names, size, llm, data, seeds, jobs, out, settings, set_, set_eval)
    jobs_of_rows = asked.only(rows).jobs if rows else asked.jobs
    if dry_run:
        for job in jobs_of_rows:
            for stage in runner.missing(job, asked.place):
                print(runner.shown(stage.command))
        return
    # Background jobs of a shell ignore SIGINT, and the processes that they start would ignore it, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with naming('--out', out):
        check_writable(asked.place.out / 'asked.json')
    asked.place.out.mkdir(parents=True, exist_ok=True)
    try:
        with portalocker.Lock(asked.place.out / '.lock', timeout=0, fail_when_locked=True):
            runner.write_json(asked.place.out / 'asked.json', _remembered(asked, size, names, set_, set_eval, settings))
            failed = runner.Runner(asked.place, asked.at_once, asked.devices, console)(jobs_of_rows)
    except portalocker.exceptions.LockException:
        raise UsageError(f'--out {out}: another `run` uses this folder; wait for it or give another folder.') from None
    except KeyboardInterrupt:
        console.print('Stopped; the same command continues the runs.')
        raise typer.Exit(130) from None
    make_report(asked)
    if failed:
        console.print(f'{len(failed)} runs failed: {", ".join(failed)}', style='red')
        raise typer.Exit(1)


def _remembered(asked: Plan, size: str, names: list[str], train, evaluate, settings: str | None) -> dict:
    """The content of `asked.json`, from which `report`, `sheet` and `chat-pairs` know what was run.

    Tables and seeds of earlier commands with the same settings stay.
    """
    before = runner.read_record(asked.place.out / 'asked.json') or {}
    same = {
        'size': size,
        'llms': list(asked.llms),
        'set': train,
        'set_eval': evaluate,
        'settings': settings,
        'data': asked.place.data,
    }
    known = before.get('names', []) if all(before.get(k) == v for k, v in same.items()) else []
    return {
        **same,
        'names': list(dict.fromkeys([*known, *_tables(names)])),
        'seeds': sorted({*asked.seeds, *(before.get('seeds', []) if known else [])}),
    }


def _again(out: Path) -> Plan:
    """The plan of the `run` commands that used this folder."""
    asked = runner.read_record(out / 'asked.json')
    if asked is None:
        raise UsageError(f'--out {out}: there are no runs in this folder; begin with `run`.')
    seeds = ','.join(map(str, asked['seeds']))
    data = None if asked['data'] is None else Path(asked['data'])
    data = data if data is not None and data.is_dir() else None
    names = [name for name in TABLES if name in asked['names']]
    return plan(
        names, asked['size'], asked['llms'], data, seeds, None, out, asked['settings'], asked['set'], asked['set_eval']
    )


@app.command()
def corpora(
    source: Annotated[Path, typer.Option('--from', help='Folder with NAME.txt of each, one dialogue a line.')],
    data: Annotated[Path, typer.Option(help="ParlAI's datapath, into which they are written.")],
) -> None:
    """Install the corpora of `mixed` that ParlAI's own tasks do not read, with the committed split."""
    import split

    for name, (train, valid) in split.install(source, data).items():
        print(f'{name}: {train} dialogues for training, {valid} for validation')


@app.command()
def report(
    out: Out = Path('runs/spt_convai2'),
    pattern: Annotated[
        list[str] | None,
        typer.Option(help='NAME=REGEX: what figure 3 counts (default: emoji, questions, first person).'),
    ] = None,
    nli: Annotated[str | None, typer.Option(help='Folder of an NLI model, for C.score.')] = None,
    bertscore: Annotated[str | None, typer.Option(help='Encoder of BERTScore: an id or a folder.')] = None,
    bertscore_layer: Annotated[int | None, typer.Option(help="Its layer (default: bert-score's choice).")] = None,
    mauve: Annotated[str | None, typer.Option(help='Folder of an LM, for MAUVE; needs mauve-text.')] = None,
) -> None:
    """Report all finished runs: tables as Markdown and JSON, figures as PNG, and one HTML page with everything."""
    make_report(_again(out), _pairs(pattern, '--pattern') or None, Models(nli, mauve, bertscore, bertscore_layer))


def make_report(asked: Plan, patterns: dict[str, str] | None = None, models: Models = NO_MODELS) -> Path:
    import report_of_runs

    models.check()
    built = (made.build(table, asked.size, asked.seeds, asked.place, models) for table in asked.tables)
    tables = [part for parts in built for part in parts]
    page = report_of_runs.make(asked.tables, tables, asked.size, asked.llms, asked.seeds, asked.place, patterns)
    for table in tables:
        show(table)
    console.print(f'written: {page}')
    return page


def show(table: dict) -> None:
    header, *rows = table_text.lines(table)
    drawn = Table(*header, title=table_text.title(table), title_justify='left')
    for line in rows:
        drawn.add_row(*line, style='dim' if line[0] == 'the paper' else None)
    Console(width=max(console.width, 150)).print(drawn)


@app.command()
def sheet(
    out: Out = Path('runs/spt_convai2'),
    replies: Annotated[int, typer.Option(help='Of each model.')] = 100,
    seed: Annotated[int, typer.Option(help='Draws and shuffles.')] = 1,
    left: Annotated[str | None, typer.Option(help='A row of table 1 (default: its PT).')] = None,
    right: Annotated[str | None, typer.Option(help='A row of table 1 (default: its last SPT).')] = None,
) -> None:
    """Table 7: write a CSV sheet with replies to judge, shuffled and without their models, and its key."""
    import annotation
    import report_of_runs

    asked = _again(out)
    models = report_of_runs.two_models(asked.tables, asked.size, asked.seeds, asked.place, left, right)
    rows, key = annotation.make_sheet(models, replies, seed)
    path = out / 'annotation' / 'sheet.csv'
    hidden = annotation.write_sheet(rows, key, path)
    print(f'{path}: {len(rows)} replies to judge; give each judge a copy.')
    for criterion, meanings in annotation.GUIDE.items():
        print(f'  {criterion}: ' + ', '.join(f'{n} {meaning}' for n, meaning in enumerate(meanings)))
    print(f'{hidden}: the model of each reply; do not show it to the judges.')


@app.command()
def votes(
    ratings: Annotated[Path, typer.Argument(help='The --ratings of spt chat MODEL --compare OTHER.')],
    seed: Annotated[int, typer.Option(help='Shuffles the sheet.')] = 1,
) -> None:
    """Count the votes of a chat page that compared two models, and write their replies as a sheet to judge."""
    import annotation

    read = annotation.read_votes(ratings)
    for name, count in annotation.count_votes(read).items():
        print(f'{name}: {count:.3g}' if name == 'p' else f'{name}: {count} of {len(read)}')
    rows, key = annotation.sheet_of_votes(read, seed)
    hidden = annotation.write_sheet(rows, key, ratings.with_suffix('.sheet.csv'))
    print(f'{ratings.with_suffix(".sheet.csv")}: {len(rows)} replies to judge; {hidden}: their models.')


@app.command('score-sheets')
def score_sheets(
    sheets: Annotated[list[Path], typer.Argument(help='Filled sheets, one per judge.')],
    key: Annotated[
        Path | None, typer.Option(help='The key (default: the one beside the first sheet, or sheet.key.json there).')
    ] = None,
) -> None:
    """Table 7: the mean of each model and criterion, and the agreement of the judges."""
    import annotation
    from paper_figures import JUDGED, TABLE_7

    found = key or next(
        (p for p in (sheets[0].with_suffix('.key.json'), sheets[0].with_name('sheet.key.json')) if p.exists()), None
    )
    if found is None or not found.exists():
        raise UsageError(f'{sheets[0]}: there is no key beside this sheet; give it with --key.')
    models = json.loads(found.read_text(encoding='utf-8'))
    result = annotation.score([annotation.read_scores(path, models) for path in sheets], models)
    drawn = Table('', *JUDGED, title=f'Table 7. {result["judges"]} judges', title_justify='left')
    for model, means in result['models'].items():
        drawn.add_row(
            model,
            *('–' if m['mean'] is None else f'{m["mean"]:.2f} ± {m["sd"]:.2f} (n = {m["n"]})' for m in means.values()),
        )
    for label, figures in TABLE_7.items():
        drawn.add_row(f'the paper, {label}', *(f'{v:.2f}' for v in figures.values()), style='dim')
    drawn.add_row('agreement (κ)', *('–' if k is None else f'{k:.2f}' for k in result['agreement'].values()))
    console.print(drawn)
    runner.write_json(found.with_name('table7.json'), result)


@app.command('chat-pairs')
def chat_pairs(
    out: Out = Path('runs/spt_convai2'),
    dialogues: Annotated[int, typer.Option(help='Number of dialogues.')] = 4,
    left: Annotated[str | None, typer.Option(help='A row of table 1 (default: its PT).')] = None,
    right: Annotated[str | None, typer.Option(help='A row of table 1 (default: its last SPT).')] = None,
) -> None:
    """Figure 4: two models' replies in the same dialogues, side by side."""
    import figures
    import report_of_runs

    asked = _again(out)
    models = report_of_runs.two_models(asked.tables, asked.size, asked.seeds, asked.place, left, right)
    names = tuple(models)
    pairs = figures.paired_dialogues(*models.values(), dialogues)
    for dialogue in pairs:
        console.rule('; '.join(dialogue['persona']) or 'no persona')
        for turn in dialogue['turns']:
            console.print(f'  {turn["said"] or "(opens the dialogue)"}', style='bold', markup=False)
            for name, side in zip(names, ('left', 'right'), strict=True):
                console.print(f'    {name}: {turn[side]}', markup=False, highlight=False)
    print(f'wrote {figures.conversations(pairs, names, out / "report" / "figure4.png")}')


if __name__ == '__main__':
    app()
