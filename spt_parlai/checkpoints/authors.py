"""Read a checkpoint of the paper's authors, which DeepSpeed saved.

It contains `models.{i}.prompt_encoder.default.embedding.weight` [L, D] for each of the K prompts, and one linear layer,
`prompt_normalizer`, that is applied to contexts and prompts alike. It becomes both layers of our retriever.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from spt_parlai.checkpoints.tensor_files import read_tensors
from spt_parlai.errors import UsageError

STATE_FILES = (
    'mp_rank_00_model_states.pt',
    'pytorch_model.bin',  # this and the next by zero_to_fp32.py
    'model.safetensors',
)
PROMPT = r'(?:^|\.)models\.(\d{1,9})\.prompt_encoder\.default\.embedding\.weight$'
LINEAR = r'(?:^|\.)prompt_normalizer\.(weight|bias)$'


class AuthorsCheckpoint(NamedTuple):
    """The trained tensors of a checkpoint.

    :param prompts: float32 [K, L, D].
    :param weight: float32 [D, D] of the linear layer, or None if the file has none.
    :param bias: float32 [D] of the linear layer, or None if the file has none.
    """

    prompts: Tensor
    weight: Tensor | None
    bias: Tensor | None


# ---- reading ---------------------------------------------------------------------------------------------


def read_authors(source: str | Path) -> AuthorsCheckpoint:
    """Read a DeepSpeed folder (or the folder of the run above it), or a single .pt, .bin or .safetensors file.

    :raises UsageError: that names what is missing or does not fit together.
    """
    file = _state_file(Path(source).expanduser())
    tensors = read_tensors(file, re.compile(f'{PROMPT}|{LINEAR}'))
    if any(not tensor.numel() for tensor in tensors.values()):
        raise _scattered(file)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise UsageError(
                f'{file}: {name} holds values that are not finite numbers; give a checkpoint saved before that.'
            )
    prompts = _numbered(file, tensors)
    width = prompts[0].shape[-1]
    weight = _linear(file, tensors, 'weight', (width, width))
    bias = _linear(file, tensors, 'bias', (width,))
    return AuthorsCheckpoint(torch.stack(prompts), weight, bias)


def _linear(file: Path, tensors: dict[str, Tensor], part: str, shape: tuple[int, ...]) -> Tensor | None:
    """The weight or bias of the linear layer, which must have this shape, or None if the file has none."""
    names = [name for name in tensors if re.search(LINEAR, name) and name.endswith(part)]
    if not names:
        return None
    tensor = _only(file, names, tensors)
    if tensor.shape != shape:
        raise UsageError(
            f'{file}: prompt_normalizer.{part} is of shape {list(tensor.shape)}, not {list(shape)}, though its prompts '
            f'are {shape[-1]} wide; give a checkpoint with the linear layer ("normalizer: linear" in its '
            'configuration).'
        )
    return tensor


def _numbered(file: Path, tensors: dict[str, Tensor]) -> list[Tensor]:
    """The prompts in the order of their numbers, which must be 0 … K-1; all must have one shape [L, D]."""
    names: dict[int, list[str]] = {}
    for name in tensors:
        if match := re.search(PROMPT, name):
            names.setdefault(int(match[1]), []).append(name)
    if not names:
        raise UsageError(
            f'{file} holds no soft prompts (models.0.prompt_encoder.default.embedding.weight and so on); '
            'give a checkpoint of the published code.'
        )
    missing = next((i for i in range(len(names)) if i not in names), None)
    if missing is not None:
        raise UsageError(
            f'{file} holds models.{max(names)} but not models.{missing}: a prompt is missing; give the whole '
            'checkpoint.'
        )
    prompts = [_only(file, names[i], tensors) for i in sorted(names)]
    shapes = [list(prompt.shape) for prompt in prompts]
    odd = [i for i, shape in enumerate(shapes) if shape != shapes[0] or len(shape) != 2]
    if odd:
        raise UsageError(
            f'{file}: models.{odd[0]} has a prompt of shape {shapes[odd[0]]} and models.0 one of {shapes[0]}; '
            'all must be of one length and width.'
        )
    return prompts


def _only(file: Path, names: list[str], tensors: dict[str, Tensor]) -> Tensor:
    """The one tensor of these names, as float32."""
    if len(names) > 1:
        raise UsageError(f'{file} holds both {names[0]} and {names[1]}; give a file with one model.')
    return tensors[names[0]].float()


def _state_file(source: Path) -> Path:
    """`source` itself if it is a file; in a folder, the file that `latest` names, or else the only one there is."""
    if os.path.isfile(source):
        return source
    if not os.path.isdir(source):
        raise UsageError(f'{source}: no such file or folder; give a checkpoint of the published code.')
    folder, latest = source, source / 'latest'
    if latest.is_file():
        folder = source / latest.read_text(encoding='utf-8', errors='replace').strip()
        if not os.path.isdir(folder):
            raise UsageError(f'{latest} names the folder {folder.name}, which is not there; give the whole checkpoint.')
    found = [folder / name for name in STATE_FILES if (folder / name).is_file()]
    found = found or sorted(folder.rglob(STATE_FILES[0]))
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f'{source} holds several checkpoints ({found[0]}, {found[1]} …); give one of them.')
    if any(folder.rglob('zero_pp_rank_*_model_states.pt')):
        raise _scattered(folder)
    raise UsageError(
        f'{source} holds no {", ".join(STATE_FILES[:-1])} or {STATE_FILES[-1]}; give a checkpoint of the published '
        'code.'
    )


def _scattered(path: Path) -> UsageError:
    return UsageError(
        f'{path} was saved by DeepSpeed ZeRO stage 3, which spreads its tensors over several files; '
        'run the zero_to_fp32.py beside it and give the file that it writes.'
    )
