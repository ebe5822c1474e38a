"""Resume a training run exactly where it was stopped, by Ctrl-C or by SIGKILL.

ParlAI's `TrainLoop` saves its counters in a second file and starts the data from the beginning. Here the counters and
the states of the random generators are part of the checkpoint (one file, written atomically), and a resumed run first
replays the data up to the checkpoint, without computing anything, so that batch n + 1 is the batch it would have been.

`spt_parlai.parlai_hooks.train_loop` calls the functions below from ParlAI's loop, in the order in which they stand
here: before anything is built, when the loop is built, before the first step, at every save.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from parlai.core.loader import load_agent_module
from parlai.core.params import get_model_name
from parlai.utils import logging
from parlai.utils.distributed import get_rank, is_primary_worker, sync_object
from tqdm import tqdm

from spt_parlai import trained_models
from spt_parlai.checkpoints.files import check_writable, load_states, save_json
from spt_parlai.dialogue.mutator import packs
from spt_parlai.errors import UsageError, naming
from spt_parlai.training import model_lock
from spt_parlai.training.distributed import random_states, restore_own_state, sigint_handled_by
from spt_parlai.training.seeding import new_seed, seed_everything

_LONG_REPLAY = 500  # batches; a longer replay shows a progress bar
_KEPT_WITH_OPTIMIZER = ('learningrate', 'momentum')  # options whose values are part of an optimizer's state


@runtime_checkable
class ResumableAgent(Protocol):
    """What the training hooks call on an agent. ParlAI's own agents have none of it and train as ParlAI always did."""

    @classmethod
    def trains_anything(cls) -> bool:
        """Whether there is anything to train."""

    def replaying(self) -> AbstractContextManager[None]:
        """While it is entered, batches are drawn and observed but not trained on."""

    def get_progress(self) -> dict[str, Any]:
        """What the loaded checkpoint says of the run: counters and the states of the random generators."""

    def set_progress(self, progress: dict[str, Any]) -> None:
        """Save this with the next checkpoint. progress: plain data and tensors."""

    def average_accumulated_gradients(self) -> None:
        """In the middle of an update (--update-freq), give every process the mean of the gradients so far."""

    def skip_replies(self, skip: bool) -> None:
        """Generate no replies in the evaluations that follow, or generate them."""


def resumable_class(opt) -> type[ResumableAgent] | None:
    """The class of the agent that options name, also where --model-file alone does; None: no agent, or another's."""
    name = get_model_name(opt)
    agent_class = load_agent_module(name) if name else None
    return agent_class if agent_class is not None and issubclass(agent_class, ResumableAgent) else None


def is_resumable(loop) -> bool:
    """Whether the agent that a TrainLoop trains can be resumed exactly."""
    return isinstance(loop.agent, ResumableAgent)


# ---- before anything is built ----------------------------------------------------------------------------


def options_of_agent(opt) -> dict[str, Any]:
    """The options that ParlAI will give the agent: this command's, and otherwise those stored beside a model file."""
    stored: dict[str, Any] = {}
    if opt.get('model_file'):
        # There may be no such file yet, or a damaged one, which ParlAI reports.
        with contextlib.suppress(OSError, ValueError, TypeError):
            stored = dict(json.loads(Path(f'{opt["model_file"]}.opt').read_text(encoding='utf-8')))
    return {**opt, **stored, **(opt.get('override') or {})}


def begin(opt) -> dict[str, Any]:
    """Settle the model file, the checkpoint to resume from and the seed, in `opt`, and seed all generators.

    Returns the content of the checkpoint, or {} for a new run.

    :raises UsageError: where a file is damaged, cannot be written or belongs to something else.
    """
    settle_model_file(opt)
    if name := trained_models.name_of(opt.get('model_file') or ''):
        raise UsageError(f'-mf {name}: models inside the package are not trained; give --init-model {name} -mf FILE.')
    if opt.get('model_file') and is_primary_worker():
        with naming('--model-file', opt['model_file']):
            check_writable(opt['model_file'])
        model_lock.hold(opt['model_file'])
    path = _checkpoint_to_resume(opt)
    saved = load_states(path) if path else {}
    if path:
        check_best(opt, path)
        keep_settings(opt, saved, path)
    if opt.get('seed') is None:
        stored = saved.get('spt', {}).get('seed')
        opt['seed'] = sync_object(new_seed() if stored is None else stored)
        origin = 'was chosen; give it to repeat this run' if stored is None else 'is the one this run began with'
        logging.info(f'--seed {opt["seed"]} {origin}.')
    seed_everything(opt['seed'], get_rank())
    stats = _stats_of(saved)
    if path and stats and is_primary_worker():
        restore_train_stats(Path(f'{path}.trainstats'), stats)
    return saved


def settle_model_file(opt) -> None:
    """Keep a run that has no `--model-file` in a new folder, because ParlAI needs a model file or a dictionary file."""
    if not opt.get('model_file') and not opt.get('dict_file'):
        opt['model_file'] = str(Path('runs', sync_object(time.strftime('%Y%m%d-%H%M%S')), 'model'))
        logging.warning(f'No --model-file was given: this run is kept in {opt["model_file"]}.')


def _checkpoint_to_resume(opt) -> Path | None:
    """The file that ParlAI is about to resume from."""
    if not opt.get('model_file'):
        return None
    for suffix in ('.checkpoint', '') if opt.get('load_from_checkpoint') else ('',):
        path = Path(opt['model_file'] + suffix)
        if path.exists():
            return path
    return None


def check_best(opt, checkpoint: Path) -> None:
    """Refuse a damaged best model, which a run that continues from its `.checkpoint` would load only at its end.

    :raises UsageError: before any training.
    """
    best = Path(opt['model_file'])
    if checkpoint == best or not best.exists():
        return
    try:
        load_states(best)
    except UsageError as error:
        raise UsageError(
            f'{error} {checkpoint} is whole: delete {best} to continue from there without the best model so far.'
        ) from error


def keep_settings(opt, saved: dict[str, Any], checkpoint: Path) -> None:
    """A continued run keeps its seed and its optimizer's settings; warn where the command gives other ones."""
    asked, kept = opt.get('override') or {}, {}
    if saved['spt'].get('seed') is not None:
        kept['seed'] = saved['spt']['seed']
    if saved.get('optimizer_type') == opt.get('optimizer'):  # another optimizer starts anew
        with contextlib.suppress(OSError, ValueError):
            stored = json.loads(Path(f'{checkpoint}.opt').read_text(encoding='utf-8'))
            kept.update((name, stored[name]) for name in _KEPT_WITH_OPTIMIZER if name in stored)
    for name, value in kept.items():
        if name in asked and asked[name] != value:
            logging.warning(
                f'--{name} {asked[name]}: {checkpoint} continues, and keeps --{name} {value}; give another '
                '--model-file to begin anew.'
            )
            opt[name] = asked[name] = value


def restore_train_stats(path: Path, stats: dict[str, Any]) -> None:
    """Give ParlAI the checkpoint's counters where its own file is missing, cut off, older or newer.

    Only the file has the training log: its entries up to the checkpoint are kept.
    """
    reports = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        found = json.loads(path.read_text())
        if found['parleys'] == stats['parleys']:
            return
        reports = [r for r in found['train_reports'] if r['train_steps'] <= stats['train_steps']]
    save_json({**stats, 'train_reports': reports}, path)


def _stats_of(saved: dict[str, Any]) -> dict[str, Any] | None:
    return saved.get('progress', {}).get('train_stats')


# ---- when the loop is built ------------------------------------------------------------------------------


def forget_init_model(opt) -> None:
    """Once the agent has its weights, drop `--init-model`: ParlAI would load it again in place of the best model."""
    if opt.get('model_file'):
        opt['init_model'] = None
        (opt.get('override') or {}).pop('init_model', None)


def epochs_of(world, opt) -> Callable[[], float]:
    """How to count a world's epochs: one epoch is one pass over the data, also where a message is a whole dialogue.

    ParlAI divides the messages that it has seen by the number of turns; here they are divided by that of dialogues.
    """
    by_turns = world.get_total_epochs
    if not packs(opt):
        return by_turns
    turns, dialogues = world.num_examples(), world.num_episodes()
    if not turns or not dialogues:  # a teacher that does not know its size counts its epochs itself
        return by_turns
    return lambda: by_turns() * turns / dialogues


def restore_counters(loop, saved: dict[str, Any]) -> None:
    """Set those counters of a TrainLoop that ParlAI does not restore: when it last validated, logged and saved."""
    loop.parleys_done = loop.parleys  # batches that are complete; ParlAI counts in `parleys` after a batch
    if not loop.parleys:
        return
    steps = [report.get('train_steps', 0) for report in loop.valid_reports]
    loop._last_valid_steps = steps[-1] if steps else 0
    loop._last_log_steps = (_stats_of(saved) or {}).get('since_log', 0)
    loop.saved = loop.best_valid is not None and Path(loop.opt['model_file']).exists()


# ---- before the first step -------------------------------------------------------------------------------


def replay(loop) -> None:
    """Draw the batches that the checkpoint has seen, without computing, and restore the states of the generators."""
    agent, done = loop.agent, loop.parleys
    if not done:
        return
    logging.info(f'resuming after {done} batches: replaying the data stream up to there')
    loop._preempted_epochs = 0.0  # the replay counts the epochs again
    with agent.replaying():
        for _ in tqdm(range(done), desc='replay', disable=done < _LONG_REPLAY):
            loop.world.parley()
    loop.world.reset_metrics()
    restore_own_state(agent.get_progress())


def validate_if_due(loop) -> bool:
    """Validate first if the run was stopped just before a validation. Returns whether training should stop."""
    if not loop.parleys:
        return False
    loop._get_time(loop.world)  # sets the epochs
    loop._total_exs = round(loop._total_epochs * loop.world.num_examples())
    if loop._total_epochs >= loop.max_num_epochs or loop._train_steps >= loop.max_train_steps:
        return False  # a run that ends does not validate first
    if (
        loop._train_steps - loop._last_valid_steps < loop.val_every_n_steps
        and loop._total_epochs - loop.last_valid_epoch < loop.val_every_n_epochs
    ):
        return False
    stops = loop.validate()
    loop.last_valid_epoch, loop._last_valid_steps = loop._total_epochs, loop._train_steps
    loop.world.reset_metrics()
    return stops


@contextlib.contextmanager
def interrupts_deferred():
    """Let Ctrl-C wait for the end of the batch, so that a checkpoint never holds half a batch.

    :raises KeyboardInterrupt: at the end of the batch, if Ctrl-C was pressed.
    """
    received = []
    with sigint_handled_by(lambda *args: received.append(args)):
        yield
    if received:
        raise KeyboardInterrupt


# ---- at every save ---------------------------------------------------------------------------------------


def give_progress(loop) -> None:
    """Tell the agent what its checkpoint says of the run. All processes call this together."""
    loop.agent.average_accumulated_gradients()
    loop._last_log_steps += (loop.parleys_done - loop.parleys) / loop.update_freq  # after a Ctrl-C
    loop.parleys = loop.parleys_done
    loop._train_steps = loop.parleys // loop.update_freq
    loop.agent.set_progress({'train_stats': counters(loop), **random_states()})


def counters(loop) -> dict[str, Any]:
    """What ParlAI keeps in `.trainstats`, as plain data. The training log, on which nothing depends, is left out."""
    stats = {
        'parleys': loop.parleys,
        'train_time': loop.train_time.time(),
        'train_steps': loop._train_steps,
        'since_log': loop._last_log_steps,
        'total_epochs': getattr(loop, '_total_epochs', 0.0),
        'valid_reports': loop.valid_reports,
        'best_valid': loop.best_valid,
        'impatience': loop.impatience,
        'final_valid_report': {},
        'final_test_report': {},
        'final_extra_valid_report': {},
    }
    return json.loads(json.dumps(stats))
