"""Training that continues exactly where it was stopped, by Ctrl-C or by SIGKILL.

ParlAI's `TrainLoop` saves its counters in a second file and restarts the data from nowhere. Here the counters and the
random generators' states travel inside the checkpoint (one file, written atomically), and a resumed run first replays
the data stream up to the checkpoint, without computing anything, so that batch n + 1 is the batch it would have been.
Only loops around an agent with a `progress` attribute are touched; ParlAI's own agents train as they always did.

What a training run is told before its first step about the files that it begins from, or will be kept in.

One epoch is one pass over the data, also where a message is a whole dialogue.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

from parlai.core.exceptions import StopTrainException
from parlai.core.loader import load_agent_module
from parlai.core.params import get_model_name
from parlai.scripts import train_model
from parlai.utils import logging
from parlai.utils.distributed import get_rank, is_distributed, is_primary_worker, sync_object
from tqdm import tqdm

from spt_parlai.checkpoints.files import check_writable, load_states, save_json
from spt_parlai.dialogue.mutator import packs
from spt_parlai.errors import UsageError, naming
from spt_parlai.options.parlai_options import check_training, settle_validation
from spt_parlai.training.distributed import (
    AgreedInterrupt,
    agreed_time,
    announce_synchronisation,
    average_accumulated_gradients,
    check_same_start,
    interrupts_noted,
    random_states,
    restore_own_state,
    wait_for_save,
)
from spt_parlai.training.seeding import new_seed, seed_everything

_LONG_REPLAY = 500  # batches, from which a progress bar is shown


def install() -> None:
    """Give ParlAI's TrainLoop the methods below; safe to call twice."""
    loop = train_model.TrainLoop
    if getattr(loop, '_resumes_exactly', False):
        return
    loop._resumes_exactly = True
    for name, wrapper in (
        ('__init__', _init),
        ('train_steps', _train_steps),
        ('_get_time', _get_time),
        ('validate', _validate),
        ('save_model', _save_model),
        ('_save_train_stats', _save_train_stats),
    ):
        setattr(loop, name, _wrap(getattr(loop, name), wrapper))
    train_model.set_seed = lambda seed: seed_everything(seed, get_rank())


def _wrap(original, wrapper):
    def method(self, *args, **kwargs):
        return wrapper(original, self, *args, **kwargs)

    return method


def _init(original, loop, opt) -> None:
    """Settle the seed, put the counters back beside the checkpoint, and open all data before the first step."""
    if not _is_ours(opt):
        return original(loop, opt)
    if not load_agent_module(get_model_name(opt)).trains:
        raise UsageError(
            f'-m {get_model_name(opt)} has nothing to train: run parlai eval_model, or parlai interactive, with the same options.'
        )
    opt['training_loop'] = True
    settle_validation(opt)
    check_training(opt)
    settle_model_file(opt)
    if opt.get('model_file') and is_primary_worker():
        with naming('--model-file', opt['model_file']):
            check_writable(opt['model_file'])
    path = _checkpoint_to_resume(opt)
    saved = load_states(path) if path else {}
    if path:
        check_best(opt, path)
        settle_changes(opt, saved, path)
    if opt.get('seed') is None:
        stored = saved.get('spt', {}).get('seed')
        opt['seed'] = sync_object(new_seed() if stored is None else stored)
        origin = 'was chosen; give it to repeat this run' if stored is None else 'is the one this run began with'
        logging.info(f'--seed {opt["seed"]} {origin}.')
    seed_everything(opt['seed'], get_rank())
    stats = saved.get('progress', {}).get('train_stats')
    if path and stats and is_primary_worker():
        _restore_train_stats(Path(f'{path}.trainstats'), stats)
    original(loop, opt)
    if opt.get(
        'model_file'
    ):  # init_model's part is played: the last report is of the best model, not of what the run began from
        opt['init_model'] = None
        (opt.get('override') or {}).pop('init_model', None)
    count_packed_epochs(loop.world, opt)
    check_same_start(loop, opt.get('model_file'))
    loop.valid_worlds = train_model.load_eval_worlds(loop.agent, opt, 'valid')  # data that is missing is missed now
    seed_everything(opt['seed'], get_rank())
    loop.parleys_done = loop.parleys
    if loop.parleys:  # counters were loaded: this run was here before
        reports = [r.get('train_steps', 0) for r in loop.valid_reports]
        loop._last_valid_steps = reports[-1] if reports else 0
        loop._last_log_steps = (stats or {}).get('since_log', 0)
        loop.saved = loop.best_valid is not None and Path(opt['model_file']).exists()
    return None


def _is_ours(opt) -> bool:
    name = get_model_name(opt)  # also where -mf alone says which model
    return name is not None and hasattr(load_agent_module(name), 'trains')


def _checkpoint_to_resume(opt) -> Path | None:
    """The file that ParlAI is about to resume from."""
    if not opt.get('model_file'):
        return None
    for suffix in ('.checkpoint', '') if opt.get('load_from_checkpoint') else ('',):
        path = Path(opt['model_file'] + suffix)
        if path.exists():
            return path
    return None


def _restore_train_stats(path: Path, stats: dict) -> None:
    """The counters inside the checkpoint are the true ones; a file that disagrees was cut off, or is older or newer.

    The training log is in the file alone: what it holds up to the checkpoint is kept.
    """
    reports = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        found = json.loads(path.read_text())
        if found['parleys'] == stats['parleys']:
            return
        reports = [r for r in found['train_reports'] if r['train_steps'] <= stats['train_steps']]
    save_json({**stats, 'train_reports': reports}, path)


def _train_steps(original, loop):
    if not hasattr(loop.agent, 'progress'):
        yield from original(loop)
        return
    if is_distributed():
        announce_synchronisation(loop.agent.model)
    _replay(loop)
    _count_whole_parleys(loop)
    try:
        with interrupts_noted(loop) if is_distributed() else contextlib.nullcontext():
            if loop.parleys:
                _validate_if_due(loop)
            yield from original(loop)
    except KeyboardInterrupt as interrupt:
        if not loop.opt.get('model_file'):
            raise
        if not is_distributed() or isinstance(interrupt, AgreedInterrupt):
            loop.save_model('.checkpoint')
            wait_for_save()
            logging.info(
                f'interrupted: {loop.opt["model_file"]}.checkpoint is saved, the same command continues from it.'
            )
        else:  # in a validation, each process somewhere else
            logging.info('interrupted in a validation: the same command continues from the last checkpoint.')
        raise SystemExit(128 + signal.SIGINT) from None


def _get_time(original, loop, world):
    ours = hasattr(loop, 'interrupted')  # set for several processes alone
    return agreed_time(loop, world) if ours else original(loop, world)


def _replay(loop) -> None:
    """Draw the batches that the checkpoint has seen, without computing, and set the generators to where they were."""
    agent, done = loop.agent, loop.parleys
    if not done:
        return
    logging.info(f'resuming after {done} batches: replaying the data stream up to there')
    loop._preempted_epochs = 0.0  # the replay counts the epochs again
    with agent.replaying():
        for _ in tqdm(range(done), desc='replay', disable=done < _LONG_REPLAY):
            loop.world.parley()
    loop.world.reset_metrics()
    restore_own_state(agent.progress)


def _validate(original, loop):
    try:
        return original(loop)
    except KeyError as error:
        metric = loop.opt['validation_metric']
        if error.args != (metric,) or not hasattr(loop.agent, 'progress'):
            raise
        reported = ', '.join(sorted(loop.valid_reports[-1]))
        raise UsageError(f'--validation-metric {metric}: validation reports no such metric, but {reported}.') from error


def _validate_if_due(loop) -> None:
    """The validation that a stop came before, at the batch where it belongs."""
    loop._get_time(loop.world)  # sets the epochs
    loop._total_exs = round(loop._total_epochs * loop.world.num_examples())
    if loop._total_epochs >= loop.max_num_epochs or loop._train_steps >= loop.max_train_steps:
        return  # a run that ends does not validate first
    if (
        loop._train_steps - loop._last_valid_steps < loop.val_every_n_steps
        and loop._total_epochs - loop.last_valid_epoch < loop.val_every_n_epochs
    ):
        return
    if loop.validate():
        loop.world.parley = _end_training
    loop.last_valid_epoch, loop._last_valid_steps = loop._total_epochs, loop._train_steps
    loop.world.reset_metrics()


def _end_training():
    raise StopTrainException('the validation that was due')


def _count_whole_parleys(loop) -> None:
    """A Ctrl-C waits for the batch at hand, so that a checkpoint never holds half an update."""
    parley = loop.world.parley

    def whole_parley():
        with contextlib.nullcontext() if is_distributed() else _interrupts_deferred():
            parley()
            loop.parleys_done += 1

    loop.world.parley = whole_parley


@contextlib.contextmanager
def _interrupts_deferred():
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received = []
    previous = signal.signal(signal.SIGINT, lambda *args: received.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if received:
        raise KeyboardInterrupt


def _save_model(original, loop, suffix=None):
    if hasattr(loop.agent, 'progress') and loop.opt.get('model_file'):  # several processes save together
        average_accumulated_gradients(loop.agent)
        loop._last_log_steps += (loop.parleys_done - loop.parleys) / loop.update_freq  # after a Ctrl-C
        loop.parleys = loop.parleys_done
        loop._train_steps = loop.parleys // loop.update_freq
        loop.agent.progress = {'train_stats': _counters(loop), **random_states()}
    return original(loop, suffix)


def _counters(loop) -> dict:
    """What ParlAI keeps in `.trainstats`, as plain data; without the training log, which grows without bound and on which
    nothing depends."""
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


def _save_train_stats(original, loop, suffix=None):
    """ParlAI's own, but whole or not at all."""
    if not hasattr(loop.agent, 'progress') or not loop.opt.get('model_file') or not is_primary_worker():
        return original(loop, suffix)
    stats = {
        **_counters(loop),
        'train_reports': loop.train_reports,
        **{
            name: train_model.dict_report(getattr(loop, name))
            for name in ('final_valid_report', 'final_test_report', 'final_extra_valid_report')
        },
    }
    save_json(stats, loop.opt['model_file'] + (suffix or '') + '.trainstats')
    return None


_IN_THE_OPTIMIZER = ('learningrate', 'momentum')


def settle_model_file(opt) -> None:
    """ParlAI wants a model file or a dictionary file. A run of ours that was given neither is kept, in a new folder."""
    if not opt.get('model_file') and not opt.get('dict_file'):
        opt['model_file'] = str(Path('runs', sync_object(time.strftime('%Y%m%d-%H%M%S')), 'model'))
        logging.warning(f'No --model-file was given: this run is kept in {opt["model_file"]}.')


def check_best(opt, checkpoint: Path) -> None:
    """A run that continues from its `.checkpoint` loads its best model at its end: is that whole?

    :raises UsageError: if not; before any training.
    """
    best = Path(opt['model_file'])
    if checkpoint == best or not best.exists():
        return
    try:
        load_states(best)
    except UsageError as error:
        raise UsageError(
            f'{error} {checkpoint} is whole: without {best} the run continues from there, and has lost its best model so far.'
        ) from error


def settle_changes(opt, saved: dict[str, Any], checkpoint: Path) -> None:
    """A continued run keeps its seed and its optimizer's settings; a command that says otherwise is told."""
    asked, kept = opt.get('override') or {}, {}
    if saved['spt'].get('seed') is not None:
        kept['seed'] = saved['spt']['seed']
    if saved.get('optimizer_type') == opt.get('optimizer'):  # another optimizer starts anew
        with contextlib.suppress(OSError, ValueError):
            stored = json.loads(Path(f'{checkpoint}.opt').read_text(encoding='utf-8'))
            kept.update((name, stored[name]) for name in _IN_THE_OPTIMIZER if name in stored)
    for name, value in kept.items():
        if name in asked and asked[name] != value:
            logging.warning(
                f'--{name} {asked[name]}: {checkpoint} continues, and keeps --{name} {value}; give another --model-file to begin anew.'
            )
            opt[name] = asked[name] = value


def count_packed_epochs(world, opt) -> None:
    """ParlAI divides the messages it has seen by the number of examples (turns); here they are divided by the dialogues."""
    if not packs(opt):
        return
    turns, dialogues = world.num_examples(), world.num_episodes()
    if not turns or not dialogues:
        return  # a teacher that does not know its size: ParlAI counts its epochs by itself
    by_turns = world.get_total_epochs
    world.get_total_epochs = lambda: by_turns() * turns / dialogues
