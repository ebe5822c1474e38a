"""What a person sees while an agent of this package trains or is evaluated: its start, a bar, a line a report, a table.

With ``--verbose true`` or ``--loglevel debug``, and for every other agent, ParlAI prints what it always did. Files of
reports, trackers and return values are the same either way.
"""

from __future__ import annotations

import contextlib
import logging as python_logging
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

from parlai.core.opt import Opt
from parlai.core.params import get_model_name
from parlai.scripts import eval_model as eval_script
from parlai.scripts import train_model as train_script
from parlai.scripts.train_model import TrainLoop
from parlai.utils import logging
from parlai.utils.distributed import is_primary_worker
from parlai.utils.misc import TimeLogger
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from spt_parlai.dialogue.mutator import packs
from spt_parlai.metrics.report_table import report_line, report_table
from spt_parlai.training.resume import resumable_class

_LEFT_OUT = (
    *('building dictionary first', 'No model with opt yet at', 'Total parameters:', 'creating task(s):'),
    *('loading fbdialog data:', 'Evaluating task', 'training...', 'time:', 'running eval:', 'eval completed in'),
    *('valid:\n', 'test:\n', 'Report for ', 'Finished evaluating tasks', 'saving best valid model:'),
    'saving model checkpoint:',
    '--skip-generation true produces limited metrics',
)
_LEFT_OUT_WHEN_LOADED_AGAIN = ('--llm ', 'estimated memory', 'Loading existing model params from')
_BAR = '{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}'
_SECONDS = 1.0  # between two looks at the metrics


class _Brief(python_logging.Filter):
    """Leaves out what ParlAI says of itself while a run is shown in brief."""

    on = False
    prefixes: tuple[str, ...] = ()

    def filter(self, record: python_logging.LogRecord) -> bool:
        said = record.getMessage()
        return not (self.on and (said.startswith(self.prefixes) or said.endswith(': full interactive mode on.')))

    def begin(self, opt) -> None:
        """Show the run of these options in brief if it is one of this package's agents'."""
        shown_in_full = opt.get('verbose') or logging.logger.level <= logging.DEBUG
        self.on = not shown_in_full and resumable_class(opt) is not None
        self.prefixes = _LEFT_OUT
        if self.on and not sys.stderr.isatty():
            from transformers.utils.logging import disable_progress_bar

            disable_progress_bar()  # in a file, a bar is a line of half a screen


_brief = _Brief()


def show_runs_in_brief() -> None:
    """Begin a training run with its LLM, agent, data, model file and seed instead of all options.

    Breaks: nothing; a run begins with some 190 lines of options and ParlAI's notes on what it builds, and the same
    again when the best model is loaded at its end.
    Where: ``TrainLoop.__init__``, ``parlai/scripts/train_model.py:353``, and ``Opt.log``, ``parlai/core/opt.py:219``.
    Safe: only what is logged differs; the model file's ``.opt`` holds the options.
    Goes: when ParlAI's runs begin with what their user chose.
    """
    logging.logger.addFilter(_brief)
    parlai_init, parlai_train, parlai_log = TrainLoop.__init__, TrainLoop.train, Opt.log

    def init(self, opt):
        _brief.begin(opt)
        parlai_init(self, opt)
        if _brief.on and is_primary_worker():
            for line in _of_training(self):
                logging.info(line)
        _brief.prefixes += _LEFT_OUT_WHEN_LOADED_AGAIN

    def train(self):
        try:
            return parlai_train(self)
        finally:
            _brief.on = False

    def log(self, header='Opt'):
        if not _brief.on:
            parlai_log(self, header)

    TrainLoop.__init__, TrainLoop.train, Opt.log = init, train, log


def show_training() -> None:
    """Show a bar while a run trains and validates, a line for each report, and a table for those at its end.

    Breaks: nothing; a person sees no sign of life between two reports, each of which is a dozen lines of abbreviations
    in the order of the alphabet, and which take 20 ms even where they are left out.
    Where: ``TrainLoop``'s methods ``train_steps``, ``log``, ``_run_single_eval`` and ``_run_eval``,
    ``parlai/scripts/train_model.py:922``, 872, 640 and 686.
    Safe: each is ParlAI's own; the bar reads the metrics without changing them, and only on a terminal.
    Goes: when ParlAI shows its progress.
    """
    parlai_train_steps, parlai_log = TrainLoop.train_steps, TrainLoop.log
    parlai_run_single_eval, parlai_run_eval = TrainLoop._run_single_eval, TrainLoop._run_eval
    parlai_nice_report = train_script.nice_report

    def train_steps(self):
        with _bar() as show:
            if show is not None:
                self.world.parley = _watched(
                    self.world.parley, lambda: show(_done(self), f'step {self._train_steps}', self.world.report())
                )
            yield from parlai_train_steps(self)

    def log(self):
        train_script.nice_report = _no_report if _brief.on else parlai_nice_report
        try:
            report = parlai_log(self)
        finally:
            train_script.nice_report = parlai_nice_report
        if _brief.on and is_primary_worker():
            left = self._compute_eta(self._total_epochs, self.train_time.time(), self._train_steps)
            times = [f'{_duration(self.train_time.time())}', *([] if left is None else [f'{_duration(left)} left'])]
            logging.info(
                f'step {self._train_steps}, epoch {self._total_epochs:.2f}, {", ".join(times)}:  {report_line(report)}'
            )
        return report

    def run_single_eval(self, opt, valid_world, max_exs, datatype, *args):
        total = min(valid_world.num_examples() or 1, max_exs if max_exs > 0 else float('inf'))
        with _bar() as show, _watching(valid_world, show, datatype, total):
            return parlai_run_single_eval(self, opt, valid_world, max_exs, datatype, *args)

    def run_eval(self, valid_worlds, opt, datatype, max_exs=-1, write_log=False, *args, **kwargs):
        report = parlai_run_eval(self, valid_worlds, opt, datatype, max_exs, write_log, *args, **kwargs)
        if _brief.on and is_primary_worker():
            final = f'final report, -dt {datatype}:\n{report_table(report)}'
            logging.report(final if write_log else f'{datatype}:  {report_line(report)}')
        return report

    TrainLoop.train_steps, TrainLoop.log = train_steps, log
    TrainLoop._run_single_eval, TrainLoop._run_eval = run_single_eval, run_eval


def _no_report(report) -> str:
    return ''


def show_evaluation() -> None:
    """Begin an evaluation with agent, task and fold, show a bar, and print its report once, as a table.

    Breaks: nothing; the report of a single task is printed twice, below all options.
    Where: ``eval_model`` and ``_eval_single_world``, ``parlai/scripts/eval_model.py:250`` and 179.
    Safe: the evaluation is ParlAI's own, and so are the report that is returned and the one that is saved.
    Goes: when ParlAI prints a report once.
    """
    parlai_eval_model, parlai_single = eval_script.eval_model, eval_script._eval_single_world
    parlai_create_task, parlai_nice_report = eval_script.create_task, eval_script.nice_report
    shown: list = []  # while a task is evaluated on a terminal: the task and what shows the bar

    def eval_model(opt):
        _brief.begin(opt)
        _brief.prefixes += ('estimated memory', 'Loading existing model params from')
        try:
            return parlai_eval_model(opt)
        finally:
            _brief.on = False

    def eval_single_world(opt, agent, task):
        if _brief.on and is_primary_worker():
            logging.info(f'{task}, -dt {opt["datatype"]}: {_agent_of(agent)}')
        with _bar() as show:
            shown[:] = [task, show]
            try:
                return parlai_single(opt, agent, task)
            finally:
                shown.clear()

    def create_task(opt, *args, **kwargs):
        world = parlai_create_task(opt, *args, **kwargs)
        if shown and shown[-1] is not None:
            task, show = shown
            most = opt['num_examples'] if opt.get('num_examples', -1) > 0 else float('inf')
            total = min(world.num_examples() or 1, most)
            world.parley = _watched(world.parley, lambda: _show_evaluated(world, show, task, total))
        return world

    class LineLogger(TimeLogger):
        def log(self, done, total, report=None):
            text, report = super().log(done, total, report)
            return (f'{text.partition(chr(10))[0]}:  {report_line(report)}' if _brief.on else text), report

    def nice_report(report):
        return report_table(report) if _brief.on else parlai_nice_report(report)

    eval_script.eval_model, eval_script._eval_single_world = eval_model, eval_single_world
    eval_script.create_task, eval_script.nice_report = create_task, nice_report
    eval_script.TimeLogger = LineLogger


def show_chats_in_brief() -> None:
    """Begin a chat with its LLM and the persona alone.

    Breaks: nothing; between them stand ParlAI's notes on what it builds.
    Where: ``interactive``, ``parlai/scripts/interactive.py:78``; ``self_chat``, ``parlai/scripts/self_chat.py:106``.
    Safe: only what is logged differs.
    Goes: when ParlAI's chats begin with the chat.
    """
    from parlai.scripts import interactive, self_chat

    def briefly(chat):
        def chat_briefly(opt):
            _brief.begin(opt)
            _brief.prefixes += ('Loading existing model params from',)
            try:
                return chat(opt)
            finally:
                _brief.on = False

        return chat_briefly

    interactive.interactive = briefly(interactive.interactive)
    self_chat.self_chat = briefly(self_chat.self_chat)


# ---- the start ---------------------------------------------------------------------------------------------


def _of_training(loop) -> Iterator[str]:
    opt, agent = loop.opt, loop.agent
    yield f'{_agent_of(agent)}; {opt["optimizer"]}, learning rate {opt["learningrate"]:g}'
    unit = 'dialogues' if packs(agent.opt) else 'turns'
    ends = [
        *([f'{loop.max_train_steps:,.0f} steps'] if loop.max_train_steps < float('inf') else []),
        *([f'{loop.max_num_epochs:g} epochs'] if loop.max_num_epochs < float('inf') else []),
        *([_duration(loop.max_train_time)] if loop.max_train_time < float('inf') else []),
    ]
    size = opt['batchsize'] * loop.update_freq
    turns = loop.world.num_examples() or 0
    yield f'{opt["task"]}: {turns:,} turns, {size} {unit} a step, {" or ".join(ends) or "no end"}'
    yield f'saved in {opt["model_file"]}' if opt.get('model_file') else 'not saved: there is no --model-file'


def _agent_of(agent) -> str:
    name = (get_model_name(agent.opt) or '').rpartition(':')[2]
    trained = sum(p.numel() for p in agent.model.parameters() if p.requires_grad) if hasattr(agent, 'model') else 0
    prompts = getattr(getattr(agent, 'bare_model', None), 'soft_prompts', None)
    if prompts is None or not prompts.length:
        return f'{name}, {trained:,} trained values'
    group = f'{prompts.num_prompts} soft prompt{"s" * (prompts.num_prompts > 1)} of {prompts.length} tokens'
    return f'{name}, {group}, {trained:,} trained values'


# ---- the bar -----------------------------------------------------------------------------------------------

Show = Callable[[float, str, dict], None]


@contextlib.contextmanager
def _bar() -> Iterator[Show | None]:
    """What draws the bar, from the part that is done, what it is of and the metrics so far; None without a terminal."""
    if not (_brief.on and sys.stderr.isatty() and is_primary_worker() and logging.logger.level < logging.CRITICAL):
        yield None
        return
    with (
        logging_redirect_tqdm([logging.logger]),
        tqdm(total=1.0, bar_format=_BAR, leave=False, dynamic_ncols=True) as bar,
    ):

        def show(done: float, what: str, report: dict) -> None:
            bar.desc = what
            rate = [f'{float(report["exps"]):.3g} turns/s'] if 'exps' in report else []
            bar.set_postfix_str('  '.join([*rate, report_line(report, ('ppl',))]), refresh=False)
            bar.n = min(done, 1.0)
            bar.refresh()

        yield show


def _watched(parley: Callable[[], None], look: Callable[[], None]) -> Callable[[], None]:
    """`parley`, with a look at what is done after it, at most once a second."""
    last = 0.0

    def parley_and_look():
        nonlocal last
        parley()
        if time.monotonic() - last > _SECONDS:
            look()
            last = time.monotonic()

    return parley_and_look


@contextlib.contextmanager
def _watching(world, show: Show | None, what: str, total: float) -> Iterator[None]:
    """Show how far a world is while it is evaluated."""
    if show is None:
        yield
        return
    parley = world.parley
    world.parley = _watched(parley, lambda: _show_evaluated(world, show, what, total))
    try:
        yield
    finally:
        world.parley = parley


def _show_evaluated(world, show: Show, what: str, total: float) -> None:
    report = world.report()
    show(float(report.get('exs', 0)) / total, what, report)


def _done(loop) -> float:
    """The part of the run that is done, by whichever limit ends it first."""
    return max(
        loop._train_steps / loop.max_train_steps,
        getattr(loop, '_total_epochs', 0.0) / loop.max_num_epochs,  # set after the first batch
        loop.train_time.time() / loop.max_train_time,
    )


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(max(seconds, 0))))
