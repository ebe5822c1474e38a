"""Hooks of ParlAI's training loop: what it calls in `spt_parlai.training` for an agent that can be resumed, and when.

A run whose agent is not a `ResumableAgent`, such as ParlAI's own, trains as ParlAI always did.
"""

from __future__ import annotations

import contextlib
import signal
from typing import Any

from parlai.core import opt as parlai_opt
from parlai.core.exceptions import StopTrainException
from parlai.core.params import get_model_name
from parlai.scripts import train_model
from parlai.scripts.train_model import TrainLoop
from parlai.utils import logging
from parlai.utils.distributed import get_rank, is_distributed, is_primary_worker

from spt_parlai.checkpoints import metrics_log
from spt_parlai.checkpoints.files import save_json
from spt_parlai.dialogue.mutator import MUTATOR
from spt_parlai.errors import UsageError
from spt_parlai.options.parlai_options import check_training, settle_validation, validation_needs_replies
from spt_parlai.parlai_hooks.user_files import saving
from spt_parlai.training import model_lock, preview, resume
from spt_parlai.training.distributed import (
    AgreedInterrupt,
    agreed_time,
    announce_synchronisation,
    check_same_start,
    interrupts_noted,
    interrupts_postponed,
    sigint_handled_by,
    wait_for_save,
)
from spt_parlai.training.resume import is_resumable
from spt_parlai.training.seeding import random_state, restore_random_state, seed_everything
from spt_parlai.training.trackers import histograms_of, rows_of, trackers_of
from spt_parlai.training.validation_contexts import read_contexts

_COMPARED = {'task', 'batchsize', 'update_freq', 'optimizer', 'learningrate', 'lr_scheduler', 'warmup_updates'}
# ParlAI's options that runs are compared by, besides those of the agent


def begin_or_resume() -> None:
    """Settle options, seed and checkpoint before ParlAI builds anything, and the counters after it.

    Breaks: a killed run that is started again takes its counters from a second file, which may be older or cut off, and
    forgets since when it has neither validated nor logged; options that cannot work in training, and data that is
    missing, are noticed late or never.
    Where: ``TrainLoop.__init__``, ``parlai/scripts/train_model.py:353``.
    Safe: ParlAI's own constructor runs in between with the same options, and alone where the agent is not resumable.
    Goes: when ParlAI keeps the counters in the checkpoint.
    """
    parlai_init = TrainLoop.__init__

    def init(self, opt):
        agent_class = resume.resumable_class(opt)
        if agent_class is None:
            return parlai_init(self, opt)
        if not agent_class.trains_anything():
            raise UsageError(
                f'-m {get_model_name(opt)} has nothing to train: run parlai eval_model, or parlai interactive, with '
                'the same options.'
            )
        settle_validation(opt)
        check_training(resume.options_of_agent(opt))
        if opt.get('mutators') is None and opt.get('dialogue_packing'):
            opt['mutators'] = MUTATOR
        saved = resume.begin(opt)
        parlai_init(self, opt)
        resume.forget_init_model(opt)
        self.world.get_total_epochs = resume.epochs_of(self.world, opt)
        check_same_start(self, opt.get('model_file'))
        self.valid_worlds = train_model.load_eval_worlds(self.agent, opt, 'valid')  # missing data is noticed now
        preview.check_folds(opt)
        preview.check_metric(self)
        resume.restore_counters(self, saved)
        self.interrupted = False  # by Ctrl-C in one of several processes, see `agreed_time`

    TrainLoop.__init__ = init


def unlock_the_model_file() -> None:
    """Let another run write the model file when this one has ended.

    Breaks: nothing ParlAI knows of; two runs that write one model file overwrite each other's checkpoints, so that
    :func:`begin_or_resume` locks it.
    Where: ``TrainLoop.train``, ``parlai/scripts/train_model.py:1021``.
    Safe: the training is ParlAI's own. A run that does not end here lets go when its process ends.
    Goes: with :func:`begin_or_resume`.
    """
    parlai_train = TrainLoop.train

    def train(self):
        try:
            return parlai_train(self)
        finally:
            if self.opt.get('model_file'):
                model_lock.release(self.opt['model_file'])

    TrainLoop.train = train


def replay_before_training() -> None:
    """Seed, replay the data up to the checkpoint before the first step, and save when Ctrl-C stops the run.

    Breaks: a resumed run begins the data anew, so that it sees other batches than the run that was not stopped; two
    runs with one ``--seed`` differ where NumPy draws, and the processes of a run shuffle alike; Ctrl-C stops in the
    middle of a batch and saves nothing.
    Where: ``TrainLoop.train_steps``, ``parlai/scripts/train_model.py:922``.
    Safe: every step is ParlAI's own. A new run has nothing to replay.
    Goes: when ParlAI saves the position in the data with the checkpoint.
    """
    parlai_train_steps = TrainLoop.train_steps

    def train_steps(self):
        if not is_resumable(self):
            yield from parlai_train_steps(self)
            return
        if is_distributed():
            announce_synchronisation(self.agent.model)
        seed_everything(self.opt['seed'], get_rank())
        resume.replay(self)
        if _writes_reports(self):
            metrics_log.begin(self.opt['model_file'], _kept_options(self), self.parleys, self.valid_reports)
            for tracker in trackers_of(self):
                tracker.begin(_kept_options(self))
        parley, stop_now = self.world.parley, False

        def whole_parley():
            if stop_now:
                raise StopTrainException('the validation that was due')
            with contextlib.nullcontext() if is_distributed() else resume.interrupts_deferred():
                parley()
                self.parleys_done += 1

        self.world.parley = whole_parley
        try:
            with interrupts_noted(self) if is_distributed() else contextlib.nullcontext():
                stop_now = resume.validate_if_due(self)
                yield from parlai_train_steps(self)
        except KeyboardInterrupt as interrupt:
            if not self.opt.get('model_file'):
                raise
            if not is_distributed() or isinstance(interrupt, AgreedInterrupt):
                self.save_model('.checkpoint')
                wait_for_save()
                logging.info(
                    f'interrupted: {self.opt["model_file"]}.checkpoint is saved; the same command continues from it.'
                )
            else:  # in a validation, where every process is at a batch of its own
                logging.info('interrupted in a validation: the same command continues from the last checkpoint.')
            raise SystemExit(128 + signal.SIGINT) from None

    TrainLoop.train_steps = train_steps


def agree_on_time() -> None:
    """Let several processes agree after each batch on the epochs, the clocks and whether Ctrl-C was pressed.

    Breaks: a process that is interrupted alone leaves the others waiting for it; the clock by which a run is saved is
    each process's own when no other limit depends on time, so that they save at different batches.
    Where: ``TrainLoop._get_time``, ``parlai/scripts/train_model.py:824``.
    Safe: the result has ParlAI's four clocks, the first process's. A single process uses ParlAI's own method.
    Goes: when ParlAI's processes agree to stop.
    """
    parlai_get_time = TrainLoop._get_time

    def get_time(self, world):
        return agreed_time(self, world) if is_distributed() and is_resumable(self) else parlai_get_time(self, world)

    TrainLoop._get_time = get_time


def interrupt_validation_at_once() -> None:
    """Let Ctrl-C end a validation at once.

    Breaks: with several processes Ctrl-C would only be noted, for the end of a batch, and validation has none of those
    that train.
    Where: ``TrainLoop.validate``, ``parlai/scripts/train_model.py:539``.
    Safe: the validation is ParlAI's own.
    Goes: with :func:`agree_on_time`.
    """
    parlai_validate = TrainLoop.validate

    def validate(self):
        if not is_resumable(self):
            return parlai_validate(self)
        with sigint_handled_by(signal.default_int_handler):
            return parlai_validate(self)

    TrainLoop.validate = validate


def save_progress() -> None:
    """Put the counters and the random generators' states of all processes into the checkpoint.

    Breaks: a checkpoint and the file of its counters are two files, and a kill between them leaves two different
    moments; the states of the generators, and what other processes have accumulated of an update, are lost.
    Where: ``TrainLoop.save_model``, ``parlai/scripts/train_model.py:479``.
    Safe: the agent is only told what to save; ParlAI's own method saves.
    Goes: with :func:`begin_or_resume`.
    """
    parlai_save_model = TrainLoop.save_model

    def save_model(self, suffix=None):
        if is_resumable(self) and self.opt.get('model_file'):
            resume.give_progress(self)
        with interrupts_postponed():
            return parlai_save_model(self, suffix)

    TrainLoop.save_model = save_model


def save_train_stats_atomically() -> None:
    """Write ``.trainstats`` whole or not at all.

    Breaks: a kill while the file is written leaves half a file, which the next start of the run cannot read.
    Where: ``TrainLoop._save_train_stats``, ``parlai/scripts/train_model.py:508``.
    Safe: the file has ParlAI's fields, and one more that ParlAI does not read.
    Goes: when ParlAI replaces the file instead of writing into it.
    """
    parlai_save_train_stats = TrainLoop._save_train_stats

    def save_train_stats(self, suffix=None):
        if not is_resumable(self) or not self.opt.get('model_file') or not is_primary_worker():
            return parlai_save_train_stats(self, suffix)
        finals = ('final_valid_report', 'final_test_report', 'final_extra_valid_report')
        stats = {
            **resume.counters(self),
            'train_reports': self.train_reports,
            **{name: train_model.dict_report(getattr(self, name)) for name in finals},
        }
        save_json(stats, self.opt['model_file'] + (suffix or '') + '.trainstats')

    TrainLoop._save_train_stats = save_train_stats


def _writes_reports(loop) -> bool:
    return is_resumable(loop) and bool(loop.opt.get('model_file')) and is_primary_worker()


def _kept_options(loop) -> dict[str, Any]:
    return {name: value for name, value in loop.opt.items() if name not in parlai_opt.__AUTOCLEAN_KEYS__}


def append_reports() -> None:
    """Append every report to MODEL.metrics.jsonl, with the replies of --log-replies, and complete TensorBoard and W&B.

    Breaks: ParlAI's own file is written with a checkpoint only, so that nobody can look at a run while it trains; the
    trackers get curves alone.
    Where: ``TrainLoop.log`` and ``TrainLoop.validate``, ``parlai/scripts/train_model.py:872`` and 539.
    Safe: both are ParlAI's own; the replies leave weights, metrics and random generators as they were.
    Goes: when ParlAI writes its reports as they come.
    """
    parlai_log, parlai_validate, parlai_train = TrainLoop.log, TrainLoop.validate, TrainLoop.train

    def log(self):
        # After a Ctrl-C between the two, the metrics log would lack what the checkpoint says was reported.
        with contextlib.nullcontext() if is_distributed() else interrupts_postponed():
            report = parlai_log(self)
            if _writes_reports(self):
                left = self._compute_eta(self._total_epochs, self.train_time.time(), self._train_steps)
                metrics_log.append(self.opt['model_file'], 'train', {**self.train_reports[-1], 'time_left': left})
        return report

    def validate(self):
        if not _writes_reports(self):
            return parlai_validate(self)
        contexts = append_replies(self) if self.agent.opt.get('log_replies') else []
        stops = parlai_validate(self)
        metrics_log.append(self.opt['model_file'], 'valid', self.valid_reports[-1])
        for tracker in trackers_of(self):
            tracker.validated(
                self.parleys,
                {'train': self.train_reports, 'valid': self.valid_reports},
                histograms_of(self.agent.bare_model.soft_prompts.tokens, contexts),
                rows_of(contexts),
            )
        return stops

    def train(self):
        writes = _writes_reports(self)
        result = parlai_train(self)
        if writes:
            own = {option.name for group in self.agent.options for option in group.options} | _COMPARED
            options = {name: value for name, value in _kept_options(self).items() if name in own}
            for tracker in trackers_of(self):
                tracker.finished(options, train_model.dict_report(self.final_valid_report))
        return result

    def append_replies(loop):
        state = random_state()
        try:
            if not hasattr(loop, 'fixed_contexts'):
                loop.fixed_contexts = read_contexts(loop.agent.opt, loop.agent, loop.agent.opt['log_replies'])
            contexts = loop.fixed_contexts
            found = loop.agent.replies_of_all_prompts([context.observation for context in contexts])
        finally:
            restore_random_state(state)  # also when Ctrl-C ends it: the checkpoint holds them
        seen = [
            {'persona': c.persona, 'dialogue': c.dialogue, 'label': c.label, **replied}
            for c, replied in zip(contexts, found, strict=True)
        ]
        entry = {'train_steps': loop._train_steps, 'parleys': loop.parleys, 'contexts': seen}
        metrics_log.append(loop.opt['model_file'], 'replies', entry)
        return seen

    TrainLoop.log, TrainLoop.validate, TrainLoop.train = log, validate, train


def evaluate_one_fold_once() -> None:
    """At the end of a run, take the report of the validation fold for a test fold that is the same file.

    Breaks: nothing; ConvAI2 and other tasks without a test fold are evaluated twice, which may take hours, and the
    second report looks like one of other dialogues.
    Where: ``TrainLoop._run_eval``, ``parlai/scripts/train_model.py:686``.
    Safe: both evaluations use the same model; with ``--world-logs``, which are those of the second, both are made.
    Goes: when ParlAI knows which tasks have a test fold.
    """
    parlai_run_eval = TrainLoop._run_eval

    def run_eval(self, worlds, opt, datatype, max_exs=-1, write_log=False, extra_log_suffix=''):
        arguments = worlds, opt, datatype, max_exs, write_log, extra_log_suffix
        if not is_resumable(self) or not write_log or extra_log_suffix:
            return parlai_run_eval(self, *arguments)
        files = [getattr(world, 'world', world).get_task_agent().opt.get('datafile') for world in worlds]
        if datatype != 'test' or opt.get('world_logs') or None in files or files != getattr(self, 'final_files', None):
            self.final_files = files
            return parlai_run_eval(self, *arguments)
        task = opt.get('evaltask') or opt['task']
        logging.info(f'-dt test of {task} is its validation fold, whose report stands above.')
        if opt.get('model_file') and is_primary_worker():
            path = f'{opt["model_file"]}.test'
            with saving(path), open(path, 'a', encoding='utf-8') as file:
                file.write(f'test:\n{train_model.nice_report(self.final_valid_report)}\n\n')
        return self.final_valid_report

    TrainLoop._run_eval = run_eval


def skip_unneeded_replies() -> None:
    """Let the validation of a training run generate replies only if its metric, or the user, asks for them.

    Breaks: nothing; every validation by perplexity would take many times as long, for replies that nothing uses.
    Where: ``load_eval_worlds``, ``parlai/scripts/train_model.py:294``.
    Safe: ``--skip-generation`` decides where it is given; the worlds are ParlAI's own.
    Goes: when ParlAI knows which metrics need replies.
    """
    parlai_load_eval_worlds = train_model.load_eval_worlds

    def load_eval_worlds(agent, opt, datatype):
        if isinstance(agent, resume.ResumableAgent):
            agent.skip_replies(not validation_needs_replies(agent.opt))
        return parlai_load_eval_worlds(agent, opt, datatype)

    train_model.load_eval_worlds = load_eval_worlds
