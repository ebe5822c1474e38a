"""The files that a command reads and writes: looked at before it begins, and never a reason to lose its numbers."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from spt_parlai import trained_models
from spt_parlai.checkpoints.files import check_writable
from spt_parlai.errors import UsageError, flag, naming

_unsaved: list[str] = []  # what this command could not save, a sentence each


def check_files_first() -> None:
    """Refuse a file that a command cannot read or write before it does anything.

    Breaks: ``--world-logs``, ``--report-filename``, ``--outfile`` and other files are opened when the work is done, and
    one that cannot be written ends in a traceback instead of the report. ``--report-filename ./FILE`` is taken for an
    extension of the model file's name.
    Where: ``ParlaiScript._run_from_parser_and_opt``, ``parlai/core/script.py:104``, through which every script runs.
    Safe: only what could not have worked is refused; folders of new files are made.
    Goes: when ParlAI's scripts look at their files first.
    """
    from parlai.core.script import ParlaiScript

    parlai_run = ParlaiScript.__dict__['_run_from_parser_and_opt'].__func__

    def run(cls, opt, parser):
        with files_of(opt):
            return parlai_run(cls, opt, parser)

    ParlaiScript._run_from_parser_and_opt = classmethod(run)


@contextlib.contextmanager
def files_of(opt) -> Iterator[None]:
    """Run a command with these options inside.

    :raises UsageError: before it for a file that cannot be used, after it for what could not be saved.
    """
    check_files(opt)
    _unsaved.clear()
    yield
    if _unsaved:
        raise UsageError(' '.join(_unsaved))


def report_what_cannot_be_saved() -> None:
    """Print the report of an evaluation also where it, or its log, cannot be saved, such as on a full disk.

    Breaks: a log that cannot be written ends an evaluation before its report is printed. All processes write the
    report, because ParlAI tests whether ``is_primary_worker`` exists.
    Where: ``WorldLogger.write``, ``parlai/utils/world_logging.py:182``; ``_save_eval_stats``,
    ``parlai/scripts/eval_model.py:121``; ``TrainLoop._run_eval``, ``parlai/scripts/train_model.py:688``.
    Safe: what can be written is written as before; the command still fails, at its end.
    Goes: when ParlAI prints the report first.
    """
    from parlai.scripts import eval_model
    from parlai.scripts.train_model import TrainLoop
    from parlai.utils.distributed import is_primary_worker
    from parlai.utils.io import PathManager
    from parlai.utils.misc import nice_report
    from parlai.utils.world_logging import WorldLogger

    parlai_write, parlai_save, parlai_run_eval = WorldLogger.write, eval_model._save_eval_stats, TrainLoop._run_eval

    def write(self, outfile, *args, **kwargs):
        with saving(outfile):
            parlai_write(self, outfile, *args, **kwargs)

    def save_eval_stats(opt, report):
        if is_primary_worker():
            with saving(opt['report_filename']):
                parlai_save(opt, report)

    def run_eval(self, valid_worlds, opt, datatype, max_exs=-1, write_log=False, extra_log_suffix=''):
        report = parlai_run_eval(self, valid_worlds, opt, datatype, max_exs, False, extra_log_suffix)
        if write_log and opt.get('model_file') and is_primary_worker():
            path = f'{opt["model_file"]}{extra_log_suffix}.{datatype}'
            with saving(path), PathManager.open(path, 'a') as file:
                file.write(f'{datatype}:\n{nice_report(report)}\n\n')
        return report

    WorldLogger.write, eval_model._save_eval_stats, TrainLoop._run_eval = write, save_eval_stats, run_eval


@contextlib.contextmanager
def saving(path: str) -> Iterator[None]:
    """Log an OSError that is raised inside; the command goes on, and fails at its end."""
    from parlai.utils import logging

    try:
        yield
    except OSError as error:
        sentence = f'{error.filename or path} could not be saved ({error.strerror or error}).'
        logging.error(sentence)
        _unsaved.append(sentence)


def check_files(opt) -> None:
    """Look at the files of a command.

    :raises UsageError: naming the option, the file and the reason.
    """
    name = opt.get('report_filename') or ''
    if name.startswith(('./', '../')):
        opt['report_filename'] = os.path.abspath(name)
    elif name.startswith('.') and not opt.get('model_file'):
        raise UsageError(
            f'--report-filename {name}: a name that begins with a dot is added to that of --model-file, which is not '
            'given; give a whole path.'
        )
    elif name.startswith('.') and trained_models.name_of(opt['model_file']):
        raise UsageError(f'--report-filename {name}: nothing is written into the package; give a whole path.')
    for name, path in _written(opt):
        with naming(flag(name), opt.get(name) or path):
            _check_written(Path(path))
    for name, suffix in _READ.items():
        path = opt.get(name)
        if path and not path.startswith(('zoo:', 'models:', 'spt:', 'hf:')) and not os.path.isfile(path + suffix):
            raise UsageError(f'{flag(name)} {path}: there is no file {path}{suffix}; give another path.')
    if opt.get('partner_opt_file'):
        try:
            with open(opt['partner_opt_file'], encoding='utf-8') as file:
                dict(json.load(file))
        except (ValueError, TypeError) as error:
            raise UsageError(
                f'--partner-opt-file {opt["partner_opt_file"]}: it holds no JSON object; give a file of options.'
            ) from error


_READ = {  # option → what ParlAI adds to the path
    'seed_messages_from_file': '',
    'local_human_candidates_file': '',
    'partner_opt_file': '',
    'partner_model_file': '.opt',
}


def _written(opt) -> Iterator[tuple[str, str]]:
    """Option and path of every file that a command writes when its work is done."""
    from parlai.scripts.eval_model import get_task_world_logs
    from parlai.utils.conversations import Conversations

    as_log = Conversations._get_path if opt.get('save_format') == 'conversations' else str
    if opt.get('world_logs'):
        tasks = (opt.get('evaltask') or opt.get('task') or '').split(',')
        for task in tasks:
            yield 'world_logs', as_log(get_task_world_logs(task, opt['world_logs'], len(tasks) > 1))
    if opt.get('outfile'):
        yield 'outfile', as_log(opt['outfile'])
    if opt.get('report_filename'):
        name = opt['report_filename']
        yield 'report_filename', opt['model_file'] + name if name.startswith('.') else name
    if opt.get('dump_predictions_path'):
        yield 'dump_predictions_path', opt['dump_predictions_path']
    if opt.get('dict_file') and 'dict_maxexs' in opt and not os.path.exists(opt['dict_file']):  # it is built
        yield 'dict_file', opt['dict_file']
    if opt.get('tensorboard_log'):
        folder = opt.get('tensorboard_logdir') or (opt.get('model_file') and f'{opt["model_file"]}.tensorboard')
        if folder:
            yield 'tensorboard_logdir', os.path.join(folder, 'events')


def _check_written(path: Path) -> None:
    """Raises ValueError, with the reason, where a file cannot be written. Its folder is made."""
    if path.is_dir():
        raise ValueError('it is a folder; give the path of a file')
    if path.exists():
        if not os.access(path, os.W_OK):
            raise ValueError('it cannot be written (Permission denied); give another path')
        return
    check_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
