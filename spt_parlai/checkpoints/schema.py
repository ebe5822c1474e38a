"""What a checkpoint may hold. Anybody can write a file that `torch.load` reads; here it is refused before it is used."""

from __future__ import annotations

import json
import math
import random
import zipfile
from typing import Any

import numpy as np
import torch

MOST_VALUES, DEEPEST = 2_000_000, 32  # of nested dictionaries and lists; ours have some thousands and six
_LARGEST = 2**63


class Damage(ValueError):
    """What is wrong with a checkpoint, in a few words."""


def check_container(path) -> None:
    """torch.save writes a zip archive whose records are stored as they are: what is compressed or changed is not ours.

    :raises Damage: also for a record whose content does not have its checksum.
    """
    with zipfile.ZipFile(path) as archive:
        if any(
            record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size
            for record in archive.infolist()
        ):
            raise Damage('a record is compressed')
        changed = archive.testzip()
    if changed:
        raise Damage(f'the checksum of {changed!r} is wrong')


def check_states(states: dict[str, Any]) -> None:
    """Everything that is read from a checkpoint by name has the type it is read as.

    :raises Damage: naming the entry that is not as it should be.
    """
    _check_plain(states)
    spt = states['spt']
    _expect(
        spt,
        'spt',
        {
            'agent': _line,
            'tuning': _shape,
            'llm': _line,
            'llm_revision': _or_none(_line),
            'fingerprint': _shape,
            'num_prompts': _count,
            'prompt_length': _count,
            'seed': _or_none(_whole),
        },
    )
    _expect(
        states,
        'states',
        {
            'model': lambda v: isinstance(v, dict) and all(_text(k) and _weight(t) for k, t in v.items()),
            'optimizer': lambda v: (
                isinstance(v, dict) and isinstance(v.get('state'), dict) and _param_groups(v.get('param_groups'))
            ),
            'optimizer_type': _text,
            'lr_scheduler': _or_none(lambda v: isinstance(v, dict)),
            'lr_scheduler_type': _text,
            'warmup_scheduler': _or_none(lambda v: isinstance(v, dict)),
            'number_training_updates': _count,
            'progress': lambda v: isinstance(v, dict),
            'accumulated': lambda v: isinstance(v, dict),
            'loss_scale': lambda v: isinstance(v, dict),
        },
    )
    if 'accumulated' in states:
        weights = [*states['model'].values()]
        _expect(
            states['accumulated'],
            'accumulated',
            {
                'batches': _count,
                'gradients': lambda v: (
                    isinstance(v, list)
                    and len(v) == len(weights)
                    and all(g is None or _weight(g) and g.shape == w.shape for g, w in zip(v, weights))
                ),
            },
            required=True,
        )
    progress = states.get('progress', {})
    _expect(
        progress, 'progress', {'train_stats': lambda v: isinstance(v, dict) and _writable(v), 'random': _restorable}
    )
    _expect(progress.get('train_stats', {}), 'train_stats', {'since_log': _number})
    _expect(
        progress.get('train_stats', {}),
        'train_stats',
        {
            'parleys': _count,
            'train_steps': _count,
            'train_time': _number,
            'total_epochs': _number,
            'impatience': _count,
            'best_valid': _or_none(_number),
            'valid_reports': lambda v: _dicts(v) and all(map(_report, v)),
            'final_valid_report': _report,
            'final_test_report': _report,
            'final_extra_valid_report': _report,
        },
        required='train_stats' in progress,
    )


def check_fits(saved: Any, fresh: Any, where: str) -> None:
    """What a new optimizer or scheduler says of itself is what a saved one may say, with other numbers.

    :raises Damage: for another type, or a name that is new.
    """
    if isinstance(fresh, dict) and isinstance(saved, dict):
        for name, value in saved.items():
            if name not in fresh:
                raise Damage(f'{where} has an unknown {name!r}')
            check_fits(value, fresh[name], f'{where}.{name}')
    elif isinstance(fresh, (list, tuple)) and isinstance(saved, (list, tuple)):
        if len(fresh) != len(saved):
            raise Damage(f'{where} has another length')
        for a, b in zip(saved, fresh):
            check_fits(a, b, where)
    elif not (_number(saved) and _number(fresh) or type(saved) is type(fresh)):
        raise Damage(f'{where} is of another type')


def _check_plain(states: Any) -> None:
    """Nothing but plain values, dense tensors and finite numbers in these, in reasonable number."""
    count, waiting = 0, [(states, 0)]
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:
            raise Damage('it holds far too many values')
        if isinstance(value, dict):
            if not all(isinstance(key, (str, int)) for key in value):
                raise Damage('a name in it is neither a text nor a number')
            waiting += [(part, depth + 1) for part in value.values()]
        elif isinstance(value, (list, tuple)):
            waiting += [(part, depth + 1) for part in value]
        elif isinstance(value, torch.Tensor):
            _check_tensor(value)
        elif isinstance(value, int):
            if abs(value) >= _LARGEST:
                raise Damage('a number in it is far too large')
        elif not (value is None or isinstance(value, (str, float))):
            raise Damage(f'it holds a {type(value).__name__}')


def _check_tensor(tensor: torch.Tensor) -> None:
    if (
        type(tensor) is not torch.Tensor
        or tensor.layout is not torch.strided
        or tensor.device.type != 'cpu'
        or tensor.is_quantized
    ):
        raise Damage('a tensor in it is of an odd kind')
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise Damage('a tensor in it claims to be larger than it is')
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise Damage('a tensor in it is not finite')


def _expect(entries: dict, where: str, kinds: dict, required: bool = False) -> None:
    for name, is_right in kinds.items():
        if name in entries and not is_right(entries[name]) or required and name not in entries:
            raise Damage(f'its {where} has no proper {name!r}')


def _text(value) -> bool:
    return isinstance(value, str)


def _line(value) -> bool:
    """What a message can quote."""
    return _text(value) and value.isprintable()


def _shape(value) -> bool:
    return isinstance(value, dict) and all(
        _line(k) and (v is None or _line(v) or isinstance(v, int)) for k, v in value.items()
    )


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _count(value) -> bool:
    return _whole(value) and value >= 0


def _number(value) -> bool:
    return isinstance(value, (int, float))


def _or_none(kind):
    return lambda value: value is None or kind(value)


def _weight(value) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def _param_groups(value) -> bool:
    """ParlAI's schedulers compute with both rates before anything else looks at them."""
    return _dicts(value) and all(_number(group.get(name, 0.0)) for group in value for name in ('lr', 'initial_lr'))


def _dicts(value) -> bool:
    return isinstance(value, list) and all(isinstance(part, dict) for part in value)


def _report(value) -> bool:
    """A report of ParlAI's: names and, where anything is computed with them, numbers."""
    return (
        isinstance(value, dict)
        and all(_text(name) for name in value)
        and all(
            _number(value.get(name, 0)) and math.isfinite(value.get(name, 0))
            for name in ('train_steps', 'total_epochs', 'parleys')
        )
    )


def _writable(value) -> bool:
    """Can it stand in the JSON file beside the checkpoint?"""
    try:
        json.dumps(value).encode()
    except (TypeError, ValueError):
        return False
    return True


def _restorable(state) -> bool:
    """Are these the states of random generators? Asked of generators that nobody else uses."""
    try:
        version, words, gauss = state['python']
        random.Random().setstate((version, tuple(words), gauss))
        kind, keys, *rest = state['numpy']
        np.random.RandomState().set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))
        torch.Generator().set_state(state['torch'])
        return 'cuda' not in state or isinstance(state['cuda'], torch.Tensor) and state['cuda'].dtype == torch.uint8
    except (TypeError, ValueError, KeyError, IndexError, OverflowError, RuntimeError, AttributeError):
        return False
