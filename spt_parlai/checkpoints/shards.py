"""The states of an optimizer whose weights are divided among processes: a folder that all of them write at once.

It is written and read through `torch.distributed.checkpoint`, so any other number of processes can read it, also one.
A checkpoint names its folder (entry `shards`). Every folder has a new name, and the file is written after it: a run
that is killed meanwhile has its old file and the old folder.

torch's reader unpickles the list of tensors, which could run code. Here only the classes of such a list are read.
"""

from __future__ import annotations

import contextlib
import glob
import pickle
import secrets
import shutil
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from spt_parlai.checkpoints.files import damage_explained
from spt_parlai.checkpoints.schema import Damage
from spt_parlai.errors import UsageError
from spt_parlai.model.sharded_tuning import BLOCK

_IN_A_LIST = {
    *(
        ('torch.distributed.checkpoint.metadata', name)
        for name in (
            'ChunkStorageMetadata',
            'Metadata',
            'MetadataIndex',
            'StorageMeta',
            'TensorProperties',
            'TensorStorageMetadata',
            '_MEM_FORMAT_ENCODING',
        )
    ),
    ('torch.distributed.checkpoint.filesystem', '_StorageInfo'),
    ('torch.serialization', '_get_layout'),
    ('torch', 'Size'),
    ('torch', 'float32'),
    *((module, path) for module in ('pathlib', 'pathlib._local') for path in ('PosixPath', 'WindowsPath')),
}


def new_folder(path: str) -> Path:
    """The folder for the shards of a checkpoint that is about to be written; there is none of that name."""
    return Path(f'{path}.shards-{secrets.token_hex(4)}')


def remove_others(path: str, in_use: Path | None) -> None:
    """Remove folders of earlier checkpoints in this file, and of runs that were killed while they wrote."""
    for folder in Path(path).parent.glob(f'{glob.escape(Path(path).name)}.shards-*'):
        if folder != in_use:
            shutil.rmtree(folder, ignore_errors=True)


def write(folder: Path, whole: dict[str, Tensor], shares: dict[str, tuple[Tensor, int, int]], group: Any) -> None:
    """Write tensors together; every process of the group calls this.

    :param whole: those that every process has; names are the same everywhere, as for `shares`.
    :param shares: name → (this process's share, float32, padded; the blocks of all processes; those of this one).
    :param group: processes over gloo.
    """
    tensors: dict[str, Any] = {name: tensor.detach().cpu() for name, tensor in whole.items()}
    for name, (share, blocks, own) in shares.items():
        tensors[name] = _divided(share.detach().cpu().view(-1, BLOCK)[:own], blocks, group)
    try:
        with _failures_of_others():
            checkpoint.save(tensors, checkpoint_id=folder, process_group=group)
    except (OSError, ValueError) as error:
        raise UsageError(
            f'{folder} cannot be written ({error}); make room or give another path. What was there is unchanged.'
        ) from error


def shapes_in(folder: Path) -> dict[str, torch.Size]:
    """The names of the tensors in a folder, and their shapes; that of a divided one is [blocks, BLOCK].

    :raises UsageError: if it is missing or damaged.
    """
    if not (folder / '.metadata').is_file():
        raise UsageError(
            f'{folder} is missing: it has the states of the optimizer, with which training continues; copy it beside '
            'the model file, or begin a new run from that with --init-model.'
        )
    with damage_explained(folder):
        listed = _Reader(folder).read_metadata().state_dict_metadata
        return {name: entry.size for name, entry in listed.items() if isinstance(entry, TensorStorageMetadata)}


def read(folder: Path, whole: dict[str, Tensor], shares: dict[str, tuple[Tensor, int, int]], group: Any) -> None:
    """Fill tensors with those of a folder; every process of the group calls this.

    :param whole, shares, group: as for `write`. Without a group this process reads alone, and there are no shares: all
        of a divided tensor is a whole one, [blocks, BLOCK].
    :raises UsageError: if the folder is damaged.
    """
    found: dict[str, Tensor] = {name: torch.zeros_like(tensor, device='cpu') for name, tensor in whole.items()}
    parts = {name: torch.zeros(own, BLOCK) for name, (_, _, own) in shares.items()}
    divided = {name: _divided(parts[name], blocks, group) for name, (_, blocks, _) in shares.items()}
    with damage_explained(folder), _failures_of_others(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch warns of a single process
        checkpoint.load(
            {**found, **divided}, storage_reader=_Reader(folder), process_group=group, no_dist=group is None
        )
        _check_finite([*found.values(), *parts.values()])
    for name, tensor in whole.items():
        tensor.copy_(found[name])
    for name, (share, _, own) in shares.items():
        share.zero_().view(-1, BLOCK)[:own] = parts[name].to(share.device)


def _divided(part: Tensor, blocks: int, group: Any) -> Tensor:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = DeviceMesh.from_group(group, 'cpu')
    shape = torch.Size((blocks, BLOCK))
    return DTensor.from_local(part, mesh, [Shard(0)], run_check=False, shape=shape, stride=(BLOCK, 1))


@contextlib.contextmanager
def _failures_of_others() -> Iterator[None]:
    """Turn what torch raises in all processes if one of them fails into an error.

    :raises ValueError: with the first failure.
    """
    try:
        yield
    except checkpoint.CheckpointException as error:  # no `Exception`
        failure, _ = next(iter(error.failures.values()))
        raise ValueError(f'{type(failure).__name__}: {failure}') from error


def _check_finite(tensors: Iterable[Tensor]) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise Damage('a tensor in it is not finite')


class _Reader(checkpoint.FileSystemReader):
    """torch's reader, which takes a list of tensors alone."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(Path(self.path) / '.metadata', 'rb') as file:
            found = _Unpickler(file).load()
        if not isinstance(found, Metadata):
            raise Damage('it has no list of tensors')
        for place in found.storage_data.values():
            if Path(place.relative_path).name != place.relative_path:
                raise Damage('a tensor is outside the folder')
        found.storage_meta = found.storage_meta or StorageMeta()
        return found


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _IN_A_LIST:
            raise Damage(f'its list of tensors holds a {name}')
        return super().find_class(module, name)
