"""What a training run needs only later, looked at before its first step: the metric and the folds that it evaluates."""

from __future__ import annotations

import difflib

from parlai.core import worlds
from parlai.core.metrics import aggregate_named_reports
from parlai.core.opt import Opt
from parlai.tasks.tasks import ids_to_tasks

from spt_parlai.errors import UsageError
from spt_parlai.metrics import registry

_ALWAYS_REPORTED = ('ppl', 'loss')
_BATCHES = 20  # of validation, in which a metric that is not reported for every reply must occur


def check_folds(opt) -> None:
    """Build the teachers of the folds that the run evaluates at its end, and forget them.

    :raises UsageError: where one cannot be read, or where `--final-extra-opt` cannot.
    """
    finals = [{**opt, 'datatype': 'test:stream' if 'stream' in opt['datatype'] else 'test'}]
    if opt.get('final_extra_opt'):
        finals.append({**opt, **read_final_extra(opt['final_extra_opt'])})
    for final in finals:
        for task in ids_to_tasks(final.get('evaltask') or final['task']).split(','):
            try:
                teachers = worlds._create_task_agents(Opt({**final, 'task': task}))
            except UsageError as error:
                raise UsageError(
                    f'{str(error).rstrip(".")}; training evaluates -dt {final["datatype"]} at its end.'
                ) from error
            for teacher in teachers:
                teacher.shutdown()


def read_final_extra(path: str) -> dict:
    """The options of `--final-extra-opt`. Raises UsageError where ParlAI could not use them after the training."""
    try:
        extra = Opt.load_init(path)
        if isinstance(extra.get('datatype'), str):
            return extra
        reason = 'it names no "datatype"'
    except OSError:
        reason = 'there is no such file or preset'
    except (ValueError, TypeError, AttributeError):
        reason = 'it holds no JSON object'
    raise UsageError(f'--final-extra-opt {path}: {reason}; give a JSON file of options, with "datatype": "valid".')


def check_metric(loop) -> None:
    """Look for `--validation-metric` in the report of the first batches of validation.

    :raises UsageError: that names the nearest metric, or all of them, if it is not reported.
    """
    name = loop.opt['validation_metric']
    if name in _ALWAYS_REPORTED:
        return
    for world in loop.valid_worlds:
        world.reset()
    reported: set[str] = set()
    for _ in range(_BATCHES):
        going_on = [world for world in loop.valid_worlds if not world.epoch_done()]
        for world in going_on:
            world.parley()
        report = aggregate_named_reports({world.getID(): world.report() for world in loop.valid_worlds})
        reported |= set(report)
        if name in reported:
            break
        nearest = difflib.get_close_matches(name, reported, n=1, cutoff=0.8)
        if not going_on or (nearest and registry.find(name) is None):
            break
    for world in loop.valid_worlds:
        world.reset()
        world.reset_metrics()
    if name not in reported:
        of_any_task = name.rpartition('/')[-1]
        nearest = nearest or [of_any_task] * (of_any_task in reported) or difflib.get_close_matches(name, reported, n=1)
        choose = f'did you mean {nearest[0]}?' if nearest else f'choose from {", ".join(sorted(reported))}.'
        raise UsageError(f'--validation-metric {name}: validation reports no such metric; {choose}')
