"""Run jobs as processes of ParlAI's own commands, several at once, with a record of each.

Finished stages are kept, and interrupted ones continue.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import shlex
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from grid import AGENTS, Evaluation, Job
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from warm import Command, prepare

PACKAGES = ('spt_parlai', 'parlai', 'torch', 'transformers', 'peft', 'sacrebleu', 'rouge_score', 'bert-score')
LOG_FIELDS = 'text,eval_labels,selected_prompt,prompt_scores,id,episode_done,metrics'


class Place(NamedTuple):
    """Where runs are written and what they share. data: ParlAI's datapath, None for its default."""

    out: Path
    data: str | None
    threads: int

    def folder(self, job: Job) -> Path:
        return self.out / 'runs' / job.name

    def record(self, job: Job) -> Path:
        return self.folder(job) / 'run.json'


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.{os.getpid()}.{threading.get_ident()}')
    part.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding='utf-8')
    os.replace(part, path)


def read_record(path: Path) -> dict | None:
    """The content of a JSON file, None if there is no such file."""
    return json.loads(path.read_text(encoding='utf-8')) if path.exists() else None


def environment() -> dict[str, Any]:
    """The versions, commit and machine, without which a measurement cannot be judged."""
    versions = {'python': platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    here = Path(__file__).parent
    commit = subprocess.run(['git', '-C', here, 'rev-parse', 'HEAD'], capture_output=True, text=True)
    cpu = [line.split(':')[1].strip() for line in _lines('/proc/cpuinfo') if line.startswith('model name')]
    return {
        'versions': versions,
        'commit': commit.stdout.strip() or None,
        'machine': {'cpu': cpu[0] if cpu else platform.processor(), 'cores': os.cpu_count(), 'gpus': gpus()},
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def gpus() -> list[str]:
    """Names of the GPUs that runs may use."""
    try:
        listed = subprocess.run(
            ['nvidia-smi', '--query-gpu=name', '--format=csv,noheader'], capture_output=True, text=True
        )
    except FileNotFoundError:
        return []
    return listed.stdout.strip().splitlines() if listed.returncode == 0 else []


# ---- commands --------------------------------------------------------------------------------------------


def shown(command: list[str]) -> str:
    """A command as a person types it."""
    return shlex.join(['parlai', *command[3:]])


def _words(options) -> list[str]:
    return [word for name, value in options for word in (f'--{name.replace("_", "-")}', str(value))]


def _common(job: Job, place: Place) -> list[str]:
    return ['-t', job.task, *(['-dp', place.data] if place.data else [])]


def train_command(job: Job, place: Place) -> list[str]:
    """The command that trains a job's model."""
    model = [
        '-m',
        AGENTS + job.agent,
        '--llm',
        job.llm,
        '-mf',
        str(place.folder(job) / 'model'),
        '--seed',
        str(job.seed),
        *(['--prompt-init', f'file:{place.out / "runs" / job.after / "model"}'] if job.after else []),
    ]
    return [sys.executable, '-m', 'parlai', 'train_model', *_common(job, place), *model, *_words(job.train)]


def eval_command(job: Job, evaluation: Evaluation, place: Place) -> list[str]:
    """The command that evaluates a trained model, which knows its agent and LLM, or an agent that does not train."""
    folder = place.folder(job)
    untrained = ['-m', AGENTS + job.agent, '--llm', job.llm, '--seed', str(job.seed)]
    model = ['-mf', str(folder / 'model')] if job.train is not None else untrained
    written = [
        '--report-filename',
        str(folder / f'{evaluation.key}.json'),
        '--world-logs',
        str(folder / f'{evaluation.key}.jsonl'),
    ]
    return [
        sys.executable,
        '-m',
        'parlai',
        'eval_model',
        *_common(job, place),
        '-dt',
        'valid',
        *model,
        *_words(evaluation.options),
        *written,
        '--log-keep-fields',
        LOG_FIELDS + (',candidates' if 'candidates_per_prompt' in dict(evaluation.options) else ''),
    ]


class Stage(NamedTuple):
    """A command of a job. options: they distinguish it from another command of the same name."""

    name: str
    command: list[str]
    options: dict[str, Any]


def stages(job: Job, place: Place) -> list[Stage]:
    """The stages of a job in the order in which they must run."""
    training = [] if job.train is None else [Stage('train', train_command(job, place), dict(job.train))]
    return training + [Stage(e.key, eval_command(job, e, place), dict(e.options)) for e in job.evaluations]


def finished(record: dict | None, name: str, options: dict[str, Any]) -> dict | None:
    """The record of a stage if it is finished and was run with exactly these options, else None."""
    stage = (record or {'stages': {}})['stages'].get(name, {})
    return stage if stage.get('finished') and stage.get('options') == options else None


def missing(job: Job, place: Place) -> list[Stage]:
    """The stages of a job that are not finished."""
    record = read_record(place.record(job))
    return [stage for stage in stages(job, place) if not finished(record, stage.name, stage.options)]


# ---- running ---------------------------------------------------------------------------------------------


class Stopped(Exception):
    """The user has asked to stop."""


class Runner:
    """Runs `at_once` jobs at a time, spread over the GPUs if there are any. Other jobs go on when one fails."""

    def __init__(self, place: Place, at_once: int, devices: list[int], console: Console):
        self.place, self.at_once, self.console = place, at_once, console
        self.about = environment()
        prepare()
        self.running: set[Command] = set()
        self.stopped = threading.Event()
        self.ended: dict[str, threading.Event] = {}  # of every job that others may begin from
        self.devices: queue.Queue[int | None] = queue.Queue()
        for slot in range(at_once):
            self.devices.put(devices[slot % len(devices)] if devices else None)

    def __call__(self, jobs: list[Job]) -> list[str]:
        """Run the jobs and return the names of those that failed. Ctrl-C stops all; the same command continues."""
        waiting = [job for job in jobs if missing(job, self.place)]
        self.console.print(
            f'{len(jobs)} runs, {len(jobs) - len(waiting)} of them finished before; {self.at_once} at once'
        )
        self.ended = {job.name: threading.Event() for job in waiting}
        failed, total, start = [], sum(job.cost for job in waiting), time.monotonic()
        columns = (
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn('{task.fields[left]}'),
        )
        with (
            ThreadPoolExecutor(self.at_once) as pool,
            Progress(*columns, console=self.console, disable=not self.console.is_terminal) as bar,
        ):
            task = bar.add_task('runs', total=len(waiting), left='')
            futures = {pool.submit(self.run, job): job for job in waiting}
            done = 0.0
            try:
                for count, future in enumerate(as_completed(futures), 1):
                    job, record = futures[future], future.result()
                    done += job.cost
                    left = _duration((time.monotonic() - start) * (total - done) / done)
                    bar.update(task, completed=count, left=f'{left} left')
                    if record['status'] != 'finished':
                        failed.append(job.name)
                    self._tell(count, len(waiting), job, record, left)
            except KeyboardInterrupt:
                self.stop()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return failed

    def _tell(self, count: int, total: int, job: Job, record: dict, left: str) -> None:
        took = sum(stage['seconds'] for stage in record['stages'].values())
        if record['status'] == 'finished':
            self.console.print(
                f'[{count}/{total}] {job.name}: {took:.0f} s, about {left} left', markup=False, highlight=False
            )
        else:
            self.console.print(
                f'[{count}/{total}] {job.name} FAILED: {record["error"]}', markup=False, highlight=False, style='red'
            )

    def stop(self) -> None:
        """Send SIGINT to every process: `train_model` then saves a checkpoint from which it can continue."""
        self.stopped.set()
        for process in list(self.running):
            process.interrupt()

    def run(self, job: Job) -> dict:
        """Run the missing stages of a job, writing its record after each; return the record."""
        if job.after in self.ended:
            self.ended[job.after].wait()
        path, device = self.place.record(job), self.devices.get()
        record = read_record(path) or {
            'name': job.name,
            'agent': job.agent,
            'llm': job.llm,
            'task': job.task,
            'seed': job.seed,
            'train': None if job.train is None else dict(job.train),
            'stages': {},
            **self.about,
        }
        record.update(status='running', error=None)
        try:
            for stage in missing(job, self.place):
                done = record['stages'][stage.name] = self._process(job, stage, device)
                if not done['finished']:
                    record.update(status='failed', error=done['error'])
                    break
                write_json(path, record)
            else:
                record['status'] = 'finished'
        except Stopped:
            record.update(status='stopped', error='stopped; the same command continues it')
        finally:
            self.devices.put(device)
            self.ended[job.name].set()
        write_json(path, record)
        return record

    def _process(self, job: Job, stage: Stage, device: int | None) -> dict:
        if self.stopped.is_set():
            raise Stopped
        folder = self.place.folder(job)
        folder.mkdir(parents=True, exist_ok=True)
        given = {
            'OMP_NUM_THREADS': str(self.place.threads),
            **({} if device is None else {'CUDA_VISIBLE_DEVICES': str(device)}),
        }
        log = folder / f'{stage.name}.log'
        started, clock = datetime.now(UTC).isoformat(timespec='seconds'), time.monotonic()
        process = Command(stage.command[2:], log, given)  # without `python -m`
        self.running.add(process)
        code, used = process.wait()
        self.running.discard(process)
        if self.stopped.is_set():  # whatever the exit status: a stopped process may save and exit with 0
            raise Stopped
        done = {
            'command': shown(stage.command),
            'options': stage.options,
            'environment': given,
            'started': started,
            'seconds': time.monotonic() - clock,
            'cpu_seconds': used,
            'returncode': code,
            'finished': code == 0,
        }
        if code:
            return {**done, 'error': f'{_last_line(log)} (exit status {code}; full log: {log})'}
        return {
            **done,
            **(_trained(folder) if stage.name == 'train' else {'metrics': _metrics(folder / f'{stage.name}.json')}),
        }


def _trained(folder: Path) -> dict:
    """The statistics that `train_model` writes. The hours of an epoch exclude start and validations."""
    stats = json.loads((folder / 'model.trainstats').read_text())
    epochs, reports = stats['total_epochs'], stats['train_reports']
    return {
        'train_seconds': stats['train_time'],
        'train_steps': stats['train_steps'],
        'epochs': epochs,
        'epoch_hours': stats['train_time'] / 3600 / epochs if epochs else None,
        'curve': [{k: v for k, v in report.items() if isinstance(v, (int, float))} for report in reports],
    }


def _metrics(path: Path) -> dict[str, float]:
    report = json.loads(path.read_text())['report']
    return {name: float(value) for name, value in report.items() if isinstance(value, (int, float))}


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors='replace').splitlines() if line.strip()]
    return lines[-1] if lines else 'no output'


def _duration(seconds: float) -> str:
    return f'{seconds / 60:.0f} min' if seconds >= 90 else f'{seconds:.0f} s'
