"""Read chosen tensors from files of other projects, without reading the rest into memory and without running code."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from spt_parlai.errors import UsageError

NESTS = ('module', 'state_dict')  # the entries under which DeepSpeed and many others keep the state dict
_DEEPEST = 4


class _Inert:
    """Stands in for an object of an unknown class: it accepts any content and drops it."""

    def __new__(cls, *_args):
        return super().__new__(cls)

    def __setstate__(self, state):
        """Drop the object's content."""


def load_plain(path: Path) -> Any:
    """Read a torch file. Tensors are memory-mapped, and objects of unknown classes are replaced by inert ones.

    torch's `weights_only` reader looks names up in a table and imports nothing. Here the table maps each name that the
    reader would refuse (argparse.Namespace, DeepSpeed's classes) to `_Inert`. Files from before torch 1.6 do not list
    their names, so they must contain only plain data.

    :raises UsageError: if the file cannot be read in this way.
    """
    try:
        if not zipfile.is_zipfile(path):
            return torch.load(path, map_location='cpu', weights_only=True)
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_Inert, name) for name in unknown]):
            return torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except Exception as error:  # foreign bytes make the unpickler raise almost anything
        raise UsageError(
            f'{path} is damaged, no PyTorch file, or holds objects that cannot be skipped without running code '
            f'({type(error).__name__}); save its tensors alone, as a .safetensors file.'
        ) from error


def read_tensors(path: Path, wanted: re.Pattern) -> dict[str, Tensor]:
    """The tensors of a file's state dict whose names match `wanted` anywhere, on the CPU and with the stored dtype.

    :raises UsageError: if the file is neither a .safetensors file, by its name, nor a torch file with a state dict.
    """
    if path.suffix == '.safetensors':
        try:
            with safe_open(path, framework='pt') as file:
                return {name: file.get_tensor(name) for name in file.keys() if wanted.search(name)}
        except Exception as error:  # safetensors' own class of error, or the file system's
            raise UsageError(
                f'{path} is damaged or no safetensors file ({" ".join(str(error).split())}); restore it.'
            ) from error
    states = load_plain(path)
    for _ in range(_DEEPEST):
        inner = [states[nest] for nest in NESTS if isinstance(states, dict) and isinstance(states.get(nest), dict)]
        states = inner[0] if inner else states
    if not isinstance(states, dict):
        raise UsageError(f'{path} holds no state dict; give a file that maps names to tensors.')
    return {
        name: value.detach().clone()
        for name, value in states.items()
        if isinstance(name, str) and wanted.search(name) and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    """Whether this is a dense tensor that has values, unlike tensors on torch's meta device."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == 'cpu'
