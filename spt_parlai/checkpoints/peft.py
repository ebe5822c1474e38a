"""Write and read a soft prompt as a prompt-tuning adapter of PEFT: a folder with a config and one tensor [L, D].

PEFT puts the prompt before the word embeddings of its input, [sp ; c ; y], as this package does, so the logits are the
same. The retriever has no counterpart in PEFT: whoever loads the adapters chooses among them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spt_parlai import hub
from spt_parlai.checkpoints.card import CARD, adapter_card
from spt_parlai.checkpoints.files import load_states
from spt_parlai.checkpoints.tensor_files import read_tensors
from spt_parlai.errors import UsageError, shorten

CONFIG = 'adapter_config.json'
WEIGHTS = ('adapter_model.safetensors', 'adapter_model.bin')
TENSOR = 'prompt_embeddings'
KIND = 'PROMPT_TUNING'


# ---- writing ---------------------------------------------------------------------------------------------


def export_peft(model_file: str | Path, out: str | Path, prompt: int | None = None, force: bool = False) -> list[Path]:
    """Write soft prompt `prompt` of a checkpoint as an adapter folder `out`, or each of them as `out`/prompt_{i}.

    This needs neither the LLM nor the network, because the checkpoint contains all that an adapter says about its LLM.

    :return: the folders.
    :raises UsageError: if peft is missing, there is no such prompt, an adapter exists (unless `force`), or the LLM
        projects its word embeddings.
    """
    if importlib.util.find_spec('peft') is None:
        raise UsageError("spt export-peft needs peft: pip install 'spt_parlai[peft]'.")
    states = load_states(model_file)
    prompts = checkpoint_prompts(model_file, states)
    spt = states['spt']
    _check_widths(model_file, spt, prompts.shape[-1])
    if prompt is not None and not 0 <= prompt < len(prompts):
        raise UsageError(f'--prompt {prompt}: {model_file} holds prompts 0 to {len(prompts) - 1}; give one of them.')
    out = Path(out).expanduser()
    folders = {i: out / f'prompt_{i}' for i in range(len(prompts))} if prompt is None else {prompt: out}
    there = [folder for folder in folders.values() if (folder / CONFIG).exists()]
    if there and not force:
        raise UsageError(f'--out {out}: {there[0]} holds an adapter; give another folder, or --force to replace it.')
    for i, folder in folders.items():
        try:
            _write(folder, prompts[i], spt, i)
        except OSError as error:
            raise UsageError(
                f'--out {out}: {folder} cannot be written ({error.strerror}); give another folder.'
            ) from error
    return list(folders.values())


def checkpoint_prompts(path: str | Path, states: dict[str, Any]) -> Tensor:
    """The soft prompts float32 [K, L, D] of a checkpoint that was read from `path`.

    :raises UsageError: if it holds none.
    """
    prompts = states['model'].get('soft_prompts.tokens') if isinstance(states['model'], dict) else None
    agent = states['spt'].get('agent')
    if prompts is None and agent is not None and not states['spt']['prompt_length']:
        raise UsageError(
            f'{path} is of {agent} and holds no soft prompts; give the model file of an agent that has some.'
        )
    if not isinstance(prompts, Tensor) or prompts.ndim != 3:
        raise UsageError(f'{path} is damaged: it holds no soft prompts [K, L, D]; restore it from a copy.')
    return prompts


def _check_widths(model_file: str | Path, spt: dict[str, Any], width: int) -> None:
    words = spt.get('word_size', width)
    if words != width:
        raise UsageError(
            f"{model_file}: --llm {spt['llm']} projects word embeddings {words} wide to the prompts' {width}, and PEFT "
            'puts prompts before that projection, so no adapter can hold them; use the model file with this package.'
        )


def _write(folder: Path, tokens: Tensor, spt: dict[str, Any], number: int) -> None:
    """Write all files whole or not at all, the config last: a folder with a config counts as an adapter."""
    from peft import PromptTuningConfig, TaskType
    from safetensors.torch import save_file

    length, width = tokens.shape
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        inference_mode=True,
        num_virtual_tokens=length,
        token_dim=width,
        num_transformer_submodules=1,
        num_attention_heads=spt['fingerprint'].get('num_attention_heads'),
        num_layers=spt['fingerprint'].get('num_hidden_layers'),
        base_model_name_or_path=hub.hub_id(spt['llm']),
        revision=spt.get('llm_revision'),
    )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.part', dir=folder) as part:
        config.save_pretrained(part)
        save_file({TENSOR: tokens.contiguous()}, Path(part, WEIGHTS[0]), metadata={'format': 'pt'})
        Path(part, CARD).write_text(adapter_card(spt, number), encoding='utf-8')
        for name in (WEIGHTS[0], CARD, CONFIG):
            os.replace(Path(part, name), folder / name)


# ---- reading ---------------------------------------------------------------------------------------------


def adapter_folders(folder: Path) -> list[Path]:
    """`folder` if it is an adapter, else those of its sub-folders prompt_0, prompt_1 … that are, in this order."""
    if (folder / CONFIG).is_file():
        return [folder]
    numbered = {
        int(path.name.removeprefix('prompt_')): path
        for path in folder.glob('prompt_*')
        if re.fullmatch(r'prompt_\d+', path.name) and (path / CONFIG).is_file()
    }
    return [numbered[i] for i in sorted(numbered)]


def read_adapter(folder: Path) -> Tensor:
    """The prompt float32 [L, D] of an adapter folder; peft itself is not needed.

    :raises UsageError: if its config or its tensor is not that of a prompt-tuning adapter.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
        kind = config['peft_type']
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f'{folder / CONFIG} is damaged or no configuration of a PEFT adapter; restore it.') from error
    if kind != KIND:
        raise UsageError(f'{folder} is a PEFT adapter of type {shorten(kind)}; only {KIND} holds a soft prompt.')
    files = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not files:
        raise UsageError(f'{folder} holds no {WEIGHTS[0]}; give the whole adapter folder.')
    prompt = read_tensors(files[0], re.compile(f'^{TENSOR}$')).get(TENSOR)
    if prompt is None or prompt.ndim != 2 or not prompt.numel() or not torch.isfinite(prompt).all():
        raise UsageError(f'{files[0]} holds no tensor {TENSOR} of finite numbers [L, D]; give a prompt-tuning adapter.')
    return prompt.float()
