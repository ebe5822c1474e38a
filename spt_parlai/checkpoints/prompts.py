"""Read soft prompts from any kind of file that contains some."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from spt_parlai import trained_models
from spt_parlai.checkpoints.authors import read_authors
from spt_parlai.checkpoints.files import load_states
from spt_parlai.checkpoints.peft import adapter_folders, checkpoint_prompts, read_adapter
from spt_parlai.checkpoints.tensor_files import load_plain
from spt_parlai.errors import UsageError


def read_prompts(path: str | Path) -> Tensor:
    """The soft prompts of a file or folder, float32 [K, L, D].

    It may be a checkpoint of this package, the name of a model inside the package, a checkpoint of the paper's authors
    (file or folder), a PEFT prompt-tuning adapter (a folder, with K = 1), or a folder with adapters prompt_0,
    prompt_1 … as `spt export-peft` writes them.

    :raises UsageError: if the path is none of these, or damaged.
    """
    path = Path(trained_models.resolve(str(path))).expanduser()
    if os.path.isdir(path) and (folders := adapter_folders(path)):
        prompts = [read_adapter(folder) for folder in folders]
        odd = [i for i, prompt in enumerate(prompts) if prompt.shape != prompts[0].shape]
        if odd:
            raise UsageError(
                f'{folders[odd[0]]} holds a prompt of shape {list(prompts[odd[0]].shape)} and {folders[0]} one of '
                f'{list(prompts[0].shape)}; all must be of one length and width.'
            )
        return torch.stack(prompts)
    if os.path.isfile(path) and path.suffix != '.safetensors' and _is_ours(load_plain(path)):
        return checkpoint_prompts(path, load_states(path))
    return read_authors(path).prompts


def _is_ours(states: object) -> bool:
    return isinstance(states, dict) and isinstance(states.get('spt'), dict)
