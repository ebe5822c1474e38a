"""What a checkpoint says of itself, read without torch, which takes seconds to import.

Only the pickle in the archive is read, in which a tensor is a storage's number, a shape and strides. None of its
code runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from spt_parlai.checkpoints.files import damage_explained, read_checkpoint
from spt_parlai.checkpoints.schema import check_summary

PROGRESS = ('train_steps', 'total_epochs', 'best_valid')
RESULTS = ('ppl', 'ppl_word', 'unigram_f1', 'sacrebleu', 'rougeL', 'dist1', 'dist2', 'prompt_usage_entropy', 'exs')
_DTYPES = {
    'DoubleStorage': 'float64',
    'FloatStorage': 'float32',
    'HalfStorage': 'float16',
    'BFloat16Storage': 'bfloat16',
    'LongStorage': 'int64',
    'IntStorage': 'int32',
    'ShortStorage': 'int16',
    'CharStorage': 'int8',
    'ByteStorage': 'uint8',
    'BoolStorage': 'bool',
}


class TensorShape(NamedTuple):
    """A tensor without its values."""

    shape: tuple[int, ...]
    dtype: str


class Summary(NamedTuple):
    """The description of a checkpoint, its trained tensors, and those numbers of `PROGRESS` that it holds."""

    description: dict[str, Any]
    tensors: dict[str, TensorShape]
    progress: dict[str, float]


def read_summary(path: str | os.PathLike) -> Summary:
    """Read the description, the shapes and the progress of a checkpoint.

    :raises UsageError: if the file is missing, damaged, of another format or not a checkpoint of this package.
    """
    states = read_checkpoint(path, _load)
    with damage_explained(path):
        check_summary(states, lambda value: isinstance(value, TensorShape))
    stats = states.get('progress', {}).get('train_stats', {})
    return Summary(
        states['spt'], states['model'], {name: stats[name] for name in PROGRESS if stats.get(name) is not None}
    )


def facts(path: str | os.PathLike) -> dict[str, str]:
    """The size and date of a model file, the task in the options beside it, and its run's last report of validation.

    What the files beside it do not say is left out.
    """
    file = Path(path)
    status = file.stat()
    found = {
        'file': str(file),
        'size': f'{status.st_size / 1e6:,.2f} MB',
        'date': f'{datetime.fromtimestamp(status.st_mtime):%Y-%m-%d %H:%M}',
        'task': _json_beside(file, '.opt').get('task'),
    }
    stats = _json_beside(file, '.trainstats')
    report = stats.get('final_valid_report') or (stats.get('valid_reports') or [{}])[-1]
    results = {name: report[name] for name in RESULTS if isinstance(report.get(name), (int, float))}
    found['results'] = ', '.join(f'{name} {value:.4g}' for name, value in results.items())
    card = file.with_name('README.md')
    found['card'] = str(card) if card.exists() else None
    return {name: value for name, value in found.items() if value}


def _json_beside(file: Path, suffix: str) -> dict[str, Any]:
    """The JSON object beside a model file, or {} if there is none."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(Path(f'{file}{suffix}').read_text(encoding='utf-8'))
        return content if isinstance(content, dict) else {}
    return {}


def _load(path: str | os.PathLike) -> Any:
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.count('/') == 1 and name.endswith('/data.pkl'))
        with archive.open(name) as file:
            return _Unpickler(file).load()


class _Unpickler(pickle.Unpickler):
    """Knows the two classes that our checkpoints name, and makes a `TensorShape` of every tensor."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
            return lambda dtype, _offset, shape, *_: TensorShape(tuple(map(int, shape)), dtype)
        if (module, name) == ('collections', 'OrderedDict'):
            return OrderedDict
        if module == 'torch' and name in _DTYPES:
            return _DTYPES[name]
        raise pickle.UnpicklingError(f'{module}.{name} is unknown')

    def persistent_load(self, pid: Any) -> str:
        _, dtype, *_ = pid  # 'storage', its dtype, number, device and size
        return dtype
