"""Chosen tensors out of other people's files: the rest of the file is neither read into memory nor run."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from spt_parlai.errors import UsageError

NESTS = ('module', 'state_dict')  # where DeepSpeed, and many others, keep the state dict
_DEEPEST = 4


class _Inert:
    """Stands in for an object of any other class: takes what it is given and does nothing with it."""

    def __new__(cls, *_args):
        return super().__new__(cls)

    def __setstate__(self, state):
        """The object's contents are dropped."""


def load_plain(path: Path) -> Any:
    """What a torch file holds, with tensors mapped into memory and objects of unknown classes replaced by inert ones.

    torch's `weights_only` reader looks names up in a table and imports nothing; here the table maps each name that
    it would refuse (argparse.Namespace, DeepSpeed's classes) to `_Inert`. Files from before torch 1.6 have no index
    of their names, so such a file must hold plain data alone.

    :raises UsageError: for a file that cannot be read in this way.
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
    """Name → tensor on the CPU, as stored, for each name of the file's state dict that `wanted` is found in.

    :raises UsageError: for a file that is no .safetensors file where its name says so, and no torch file otherwise.
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
    """A dense tensor with values, and not one of a shape without any (torch's meta device)."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == 'cpu'
