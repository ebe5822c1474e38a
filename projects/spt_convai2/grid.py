"""The paper's tables as runs: agent, LLM, training and evaluation. Rows that need the same run share it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, NamedTuple

import paper_figures as paper
from paper_figures import FURTHER
from sizes import SETTINGS, Size, table_6

from spt_parlai.objective import SptObjective

K = 4  # prompts of SPT in every table but table 3
AGENTS = 'spt_parlai.agents:'
Options = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """How a row is made, without its seed.

    train: options of `train_model`, None for an agent that does not train; evaluate: options of `eval_model` alone. An
    option whose value is None is left out, even if the size sets it. seeded: whether the seed changes the result.
    begin: another method, from whose prompts the training begins.
    """

    agent: str
    train: Options | None
    evaluate: Options = field(default_factory=dict)
    task: str = 'persona'
    seeded: bool = True
    begin: Method | None = None


class Row(NamedTuple):
    """A row of a table. against: label of the row to which AVG↑ is relative; paper: the paper's figures."""

    label: str
    llm: str
    method: Method
    against: str | None = None
    paper: dict[str, float] | None = None


class TableOfRows(NamedTuple):
    """A table of the paper. columns: names of the metrics to show; further: of those in a second table."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: list[Row]
    further: tuple[str, ...] = ()


class Evaluation(NamedTuple):
    """One `eval_model` of a trained model. key: the name of its files."""

    key: str
    options: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Job:
    """A training, or none, and all evaluations that any row needs of it. It runs in a folder called `name`.

    after: name of the job from whose prompts the training begins.
    """

    name: str
    agent: str
    llm: str
    task: str
    seed: int
    train: tuple[tuple[str, Any], ...] | None
    evaluations: tuple[Evaluation, ...]
    after: str | None = None

    @property
    def cost(self) -> float:
        """Rough duration in units of one training of PT, from which the remaining time is estimated."""
        options = dict(self.train or ())
        return len(self.evaluations) + (float(options.get('num_prompts', 1)) if self.train is not None else 0.0)


# ---- methods ---------------------------------------------------------------------------------------------


def spt(
    size: Size,
    llm: str,
    setting: str,
    task: str = 'persona',
    evaluate: Options | None = None,
    agent: str = 'SptAgent',
    **options,
) -> Method:
    start, beside = SETTINGS[setting]
    return _prompted(agent, size, llm, task, {'num_prompts': K, **start, **beside, **options}, evaluate)


def prompt_tuning(
    size: Size, llm: str, setting: str, task: str = 'persona', agent: str = 'PromptTuningAgent', **options
) -> Method:
    return _prompted(agent, size, llm, task, {**SETTINGS[setting][0], **options})


def _prompted(agent: str, size: Size, llm: str, task: str, options: Options, evaluate: Options | None = None) -> Method:
    return Method(agent, {**_recipe(size, llm), **options}, evaluate or {}, task)


def _recipe(size: Size, llm: str) -> Options:
    """The settings of table 6, without the number of epochs if the size counts steps."""
    return {k: v for k, v in table_6(llm).items() if k != 'num_epochs' or 'max_train_steps' not in size.train}


def tuned_weights(size: Size, llm: str, agent: str, **options) -> Method:
    """LoRA and full fine-tuning: no prompt, and their own learning rate. Full fine-tuning works in float32 only."""
    half = dict.fromkeys(('llm_dtype', 'fp16')) if agent == 'FullFineTuningAgent' else {}
    return Method(
        agent, {**_recipe(size, llm), 'prompt_length': None, 'learningrate': size.rates[agent], **half, **options}
    )


# ---- tables ----------------------------------------------------------------------------------------------


def _named(llm: str, label: str) -> str:
    return f'{paper.NAMES.get(llm, PurePath(llm).name)} {label}'


def table_1(size: Size, llms: tuple[str, ...]) -> TableOfRows:
    rows = []
    for llm in llms:
        L = table_6(llm)['prompt_length']
        for setting in size.settings:
            suffix = '' if setting == 'published' else f', {setting}'
            figures = {label: paper.TABLE_1.get(_named(llm, label)) for label in ('PT', 'SPT') if not suffix}
            against = _named(llm, f'PT{suffix}')
            rows += [
                Row(against, llm, prompt_tuning(size, llm, setting), None, figures.get('PT')),
                Row(
                    _named(llm, f'PT of {K * L} tokens{suffix}'),
                    llm,
                    prompt_tuning(size, llm, setting, prompt_length=K * L),
                    against,
                ),
                Row(_named(llm, f'SPT{suffix}'), llm, spt(size, llm, setting), against, figures.get('SPT')),
            ]
    return TableOfRows('table1', 'PT against SPT', paper.FIRST, rows, FURTHER)


def table_2(size: Size, llms: tuple[str, ...]) -> TableOfRows:
    llm, setting = llms[-1], size.settings[-1]
    rows = [
        Row('PT', llm, prompt_tuning(size, llm, setting)),
        Row('all losses', llm, spt(size, llm, setting), 'PT', paper.TABLE_2['all losses']),
        *(
            Row(
                f'without the {name} loss',
                llm,
                spt(size, llm, setting, **{weight.name: 0}),
                'PT',
                paper.TABLE_2.get(f'without the {name} loss'),
            )
            for name, weight in SptObjective.losses().items()
        ),
    ]
    return TableOfRows('table2', f'Losses switched off ({setting} setting)', (*paper.FIRST, 'dist'), rows)


def table_3(size: Size, llms: tuple[str, ...]) -> TableOfRows:
    llm, setting = llms[-1], size.settings[-1]
    rows = [Row('PT', llm, prompt_tuning(size, llm, setting))]
    rows += [
        Row(f'K = {count}', llm, spt(size, llm, setting, num_prompts=count), 'PT', paper.TABLE_3.get(count))
        for count in size.prompt_counts
    ]
    return TableOfRows('table3', f'Number of prompts ({setting} setting)', (*paper.FIRST, 'dist'), rows)


def table_4(size: Size, llms: tuple[str, ...]) -> TableOfRows:
    """Tables 4 and 8, which have the same rows; table 8 has all metrics."""
    llm, setting = llms[-1], size.settings[-1]
    L, figures = table_6(llm)['prompt_length'], paper.TABLE_4
    rows = [
        Row(
            f'PT, {L} token{"s" * (L > 1)}',
            llm,
            prompt_tuning(size, llm, setting),
            None,
            figures.get(f'PT, {L} tokens'),
        ),
        *(
            Row(
                f'PT, {n} tokens',
                llm,
                prompt_tuning(size, llm, setting, prompt_length=n),
                f'PT, {L} token{"s" * (L > 1)}',
                figures[f'PT, {n} tokens'],
            )
            for n in (4, 8)
            if n != L
        ),
        Row('SPT', llm, spt(size, llm, setting), None, figures['SPT']),
        Row(
            'LoRA of as many parameters',
            llm,
            tuned_weights(size, llm, 'LoraAgent', match_spt=f'{K},{L}'),
            None,
            figures['LoRA'],
        ),
        Row(
            'in-context, no example',
            llm,
            Method('InContextAgent', None, seeded=False),
            None,
            figures['in-context (GPT-3.5)'],
        ),
        Row('in-context, one example', llm, Method('InContextAgent', None, {'shots': 1})),
        Row('text prompt', llm, Method('TextPromptAgent', None, seeded=False)),
    ]
    if 'FullFineTuningAgent' in size.rates:
        rows.append(Row('full fine-tuning', llm, tuned_weights(size, llm, 'FullFineTuningAgent')))
    return TableOfRows('table4', f'Baselines ({setting} setting)', paper.FIRST, _against_first(rows))


def table_5(size: Size, llms: tuple[str, ...]) -> TableOfRows:
    rows = [
        row._replace(
            paper=paper.TABLE_5['SPT' if 'SPT' in row.label else 'PT'] if row.paper and 'Llama2' in row.label else None,
            against=None,
        )
        for row in table_1(size, llms).rows
    ]
    return TableOfRows(
        'table5', 'Overlap of replies with the persona: BLEU and its n-gram precisions', paper.OVERLAP, rows
    )


def table_9(size: Size, llms: tuple[str, ...]) -> TableOfRows:
    llm, setting = llms[-1], size.settings[-1]
    rate = {'learningrate': 0.001} if llm.startswith('meta-llama/') else {}  # as in the paper
    rows = [
        Row('PT', llm, prompt_tuning(size, llm, setting, 'plain', **rate), None, paper.TABLE_9['PT']),
        Row('SPT', llm, spt(size, llm, setting, 'plain', **rate), 'PT', paper.TABLE_9['SPT']),
    ]
    return TableOfRows('table9', f'DailyDialog ({setting} setting)', paper.FIRST, rows, FURTHER)


def table_10(size: Size, llms: tuple[str, ...]) -> TableOfRows:
    llm, setting = llms[-1], size.settings[-1]
    rows = [
        Row('PT', llm, prompt_tuning(size, llm, setting)),
        Row(
            'RAG with PT',
            llm,
            prompt_tuning(size, llm, setting, agent='RagAgent', **size.retrieval),
            'PT',
            paper.TABLE_10['RAG'],
        ),
        Row('SPT', llm, spt(size, llm, setting), 'PT', paper.TABLE_10['SPT']),
        Row('RAG with SPT', llm, spt(size, llm, setting, agent='SptRagAgent', **size.retrieval), 'PT'),
    ]
    return TableOfRows(
        'table10', f'Retrieval-augmented generation ({setting} setting)', (*paper.FIRST, 'epoch_hours'), rows
    )


def table_11(size: Size, llms: tuple[str, ...]) -> TableOfRows:
    llm, setting = llms[-1], size.settings[-1]
    rows = [
        Row(
            f'α = {noise:g}',
            llm,
            spt(size, llm, setting, evaluate={'score_noise': noise} if noise else None),
            None,
            paper.TABLE_11.get(noise),
        )
        for noise in (0.0, *size.noises)
    ]
    return TableOfRows(
        'table11', f'Noise on the scores at inference ({setting} setting)', paper.FIRST, _against_first(rows)
    )


def table_12(size: Size, llms: tuple[str, ...]) -> TableOfRows:
    llm, setting = llms[-1], size.settings[-1]
    rows = [
        Row(
            f'α = {noise:g}',
            llm,
            spt(size, llm, setting, **({'gold_noise': noise} if noise else {})),
            None,
            paper.TABLE_12.get(noise),
        )
        for noise in (0.0, *size.gold_noises)
    ]
    return TableOfRows(
        'table12', f'Noise on the gold distribution in training ({setting} setting)', paper.FIRST, _against_first(rows)
    )


def _against_first(rows: list[Row]) -> list[Row]:
    return [rows[0], *(row._replace(against=rows[0].label) for row in rows[1:])]


TABLES: dict[str, Callable[[Size, tuple[str, ...]], TableOfRows]] = {
    'table1': table_1,
    'table2': table_2,
    'table3': table_3,
    'table4': table_4,
    'table5': table_5,
    'table9': table_9,
    'table10': table_10,
    'table11': table_11,
    'table12': table_12,
}
ALIASES = {'table8': 'table4'}  # the same rows
BY_HAND = ('table7',)  # judged by people, see `sheet` and `score-sheets`


# ---- rows → jobs -----------------------------------------------------------------------------------------


def job_of(row: Row, size: Size, seed: int) -> Job:
    """The job of one row, with one evaluation. If nothing trains, `eval_model` receives the options of the LLM."""
    method = row.method
    seed = seed if method.seeded else 0
    evaluate = {**size.evaluate, **method.evaluate}
    if method.train is None:
        evaluate = {**{k: v for k, v in size.train.items() if k in _OF_THE_LLM}, **evaluate}
    train = None if method.train is None else _given({**size.train, **method.train})
    after = None if method.begin is None else job_of(Row('', row.llm, method.begin), size, seed).name
    identity = (method.agent, row.llm, size.tasks[method.task], train, _given(evaluate) if train is None else None)
    identity = identity if after is None else (*identity, after)
    evaluation = Evaluation(_key(method.evaluate), _given(evaluate))
    data = method.task if ',' in size.tasks[method.task] else size.tasks[method.task]
    shown = re.sub('[^A-Za-z0-9]+', '-', f'{method.agent.removesuffix("Agent")}-{PurePath(row.llm).name}-{data}')
    name = f'{shown.lower()}-{_digest(identity)}-seed{seed}'
    return Job(name, method.agent, row.llm, size.tasks[method.task], seed, train, (evaluation,), after)


_OF_THE_LLM = ('llm_dtype', 'max_new_tokens', 'fp16')


def _given(options: Options) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((name, value) for name, value in options.items() if value is not None))


def _key(options: Options) -> str:
    return '-'.join(['eval', *(f'{k}-{v}' for k, v in sorted(options.items()))])


def _digest(identity) -> str:
    return hashlib.sha256(json.dumps(identity, default=list).encode()).hexdigest()[:8]


def jobs_of(tables: Iterable[TableOfRows], size: Size, seeds: Iterable[int]) -> list[Job]:
    """Every run once, by seed, so that whole tables are finished early; a run is behind the one it begins from."""
    jobs: dict[str, Job] = {}
    tables = list(tables)

    def add(job: Job) -> None:
        known = jobs.get(job.name, job)
        both = tuple(dict.fromkeys((*known.evaluations, *job.evaluations)))
        jobs[job.name] = replace(job, evaluations=both)

    for seed in seeds:
        for table in tables:
            for row in table.rows:
                if row.method.begin is not None:
                    add(replace(job_of(Row('', row.llm, row.method.begin), size, seed), evaluations=()))
                add(job_of(row, size, seed))
    return list(jobs.values())
