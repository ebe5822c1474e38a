"""What a checkpoint may contain.

Anybody can write a file that `torch.load` reads, so the content is checked before it is used. torch is imported where
it is needed, because `summary` does without it.
"""

from __future__ import annotations

import json
import math
import os
import random
import zipfile
from collections.abc import Callable
from typing import Any

MOST_VALUES, DEEPEST = 2_000_000, 32  # our checkpoints have some thousand values, at most six levels deep
_LARGEST = 2**63

_Check = Callable[[Any], bool]


class Damage(ValueError):
    """A checkpoint is damaged; the message says in a few words how."""


def check_container(path: str | os.PathLike) -> None:
    """Check that this is a zip archive of uncompressed records with the right checksums, as torch.save writes it.

    :raises Damage: if a record is compressed or its checksum is wrong.
    :raises zipfile.BadZipFile: if this is no zip archive.
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


def check_description(states: dict[str, Any]) -> None:
    """Check that a checkpoint holds plain values and tensors, and that its description is one.

    :raises Damage: that names the first wrong entry.
    """
    _check_plain(states)
    _expect(
        states['spt'],
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


def check_states(states: dict[str, Any]) -> None:
    """Check the type of every entry that is read from a checkpoint by name.

    :raises Damage: that names the first wrong entry.
    """
    check_description(states)
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
            'balance': _weight,
            'recent': _weight,
            'use': _weight,
            'splits': lambda v: isinstance(v, list) and all(isinstance(s, list) and all(map(_count, s)) for s in v),
            'shards': lambda v: isinstance(v, dict) and _file_name(v.get('folder')) and _places(v.get('places')),
        },
    )
    if 'accumulated' in states:
        weights = [weight for name, weight in states['model'].items() if not _is_computed(name, states['model'])]
        _expect(
            states['accumulated'],
            'accumulated',
            {
                'batches': _count,
                'gradients': lambda v: (
                    isinstance(v, list)
                    and len(v) == len(weights)
                    and all(g is None or _weight(g) and g.shape == w.shape for g, w in zip(v, weights, strict=True))
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


def _is_computed(name: str, model: dict[str, Any]) -> bool:
    """Whether a tensor is no trained one: the plain prompts beside the factors that they are computed from."""
    return name == 'soft_prompts.tokens' and 'soft_prompts.shared' in model


def check_summary(states: dict[str, Any], is_tensor: _Check) -> None:
    """Check what `summary` reads from a checkpoint whose tensors have been left out.

    :param is_tensor: whether a value stands for a tensor.
    :raises Damage: that names the first wrong entry.
    """
    check_description(states)
    tensors = {'model': lambda v: isinstance(v, dict) and all(_text(k) and is_tensor(t) for k, t in v.items())}
    _expect(states, 'states', {**tensors, 'progress': lambda v: isinstance(v, dict)})
    progress = states.get('progress', {})
    _expect(progress, 'progress', {'train_stats': lambda v: isinstance(v, dict)})
    numbers = {'train_steps': _count, 'total_epochs': _number, 'best_valid': _or_none(_number)}
    _expect(progress.get('train_stats', {}), 'train_stats', numbers)


def check_fits(saved: Any, fresh: Any, where: str) -> None:
    """Check that a saved optimizer or scheduler state is built like that of a new one, with other numbers.

    :param where: what the state is called in the error.
    :raises Damage: for a value of another type, or a name that the new state does not have.
    """
    if isinstance(fresh, dict) and isinstance(saved, dict):
        for name, value in saved.items():
            if name not in fresh:
                raise Damage(f'{where} has an unknown {name!r}')
            check_fits(value, fresh[name], f'{where}.{name}')
    elif isinstance(fresh, (list, tuple)) and isinstance(saved, (list, tuple)):
        if len(fresh) != len(saved):
            raise Damage(f'{where} has another length')
        for a, b in zip(saved, fresh, strict=True):
            check_fits(a, b, where)
    elif not (_number(saved) and _number(fresh) or type(saved) is type(fresh)):
        raise Damage(f'{where} is of another type')


def _check_plain(states: Any) -> None:
    """Check that there are only plain values and dense finite tensors, and not too many of them."""
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
        elif isinstance(value, int):
            if abs(value) >= _LARGEST:
                raise Damage('a number in it is far too large')
        elif not (value is None or isinstance(value, (str, float))):
            _check_tensor(value)


def _check_tensor(tensor: Any) -> None:
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise Damage(f'it holds a {type(tensor).__name__}')
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


def _expect(entries: dict, where: str, kinds: dict[str, _Check], required: bool = False) -> None:
    """Check the entries that have a kind; with `required`, they must all be there."""
    for name, is_right in kinds.items():
        if name in entries and not is_right(entries[name]) or required and name not in entries:
            raise Damage(f'its {where} has no proper {name!r}')


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _line(value: Any) -> bool:
    """A text that fits into an error message."""
    return _text(value) and value.isprintable()


def _file_name(value: Any) -> bool:
    return _line(value) and value not in ('', '.', '..') and not set(value) & set('/\\')


def _places(value: Any) -> bool:
    """Where weights begin in the units of a sharding: name of a unit → name of a weight → a number of values."""
    return isinstance(value, dict) and all(
        _line(unit) and isinstance(weights, dict) and all(_line(w) and _count(n) for w, n in weights.items())
        for unit, weights in value.items()
    )


def _shape(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _line(k) and (v is None or _line(v) or isinstance(v, int)) for k, v in value.items()
    )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return _whole(value) and value >= 0


def _number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _or_none(kind: _Check) -> _Check:
    return lambda value: value is None or kind(value)


def _weight(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def _param_groups(value: Any) -> bool:
    """Both learning rates are checked because ParlAI's schedulers compute with them before anything else does."""
    return _dicts(value) and all(_number(group.get(name, 0.0)) for group in value for name in ('lr', 'initial_lr'))


def _dicts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, dict) for part in value)


def _report(value: Any) -> bool:
    """A report of ParlAI's; the entries that are computed with must be finite numbers."""
    return (
        isinstance(value, dict)
        and all(_text(name) for name in value)
        and all(
            _number(value.get(name, 0)) and math.isfinite(value.get(name, 0))
            for name in ('train_steps', 'total_epochs', 'parleys')
        )
    )


def _writable(value: Any) -> bool:
    """Whether the value can be written to the JSON file beside the checkpoint."""
    try:
        json.dumps(value).encode()
    except (TypeError, ValueError):
        return False
    return True


def _restorable(state: Any) -> bool:
    """Whether these are states of random generators. They are tried on new generators, which nothing else uses."""
    import numpy as np
    import torch

    try:
        version, words, gauss = state['python']
        random.Random().setstate((version, tuple(words), gauss))
        kind, keys, *rest = state['numpy']
        np.random.RandomState().set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))
        torch.Generator().set_state(state['torch'])
        return 'cuda' not in state or isinstance(state['cuda'], torch.Tensor) and state['cuda'].dtype == torch.uint8
    except (TypeError, ValueError, KeyError, IndexError, OverflowError, RuntimeError, AttributeError):
        return False
