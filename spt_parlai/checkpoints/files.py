"""Checkpoints are written whole or not at all, and read without running code.

A checkpoint holds the trained tensors, the optimizer and the scheduler, the progress of the training run, and a
description of the LLM (name, revision, shapes), but never the LLM itself.

torch is imported where it is needed, because `summary` does without it.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spt_parlai.checkpoints.schema import Damage, check_container, check_states
from spt_parlai.errors import UsageError, shorten

FORMAT = 1
_UNSAID = {'--prompt-shared-rank': 0}  # what a file means that says nothing of an option
DESCRIPTION = ('llm', 'fingerprint', 'num_prompts', 'prompt_length')  # what every description must contain


# ---- writing ----------------------------------------------------------------------------------------------


def write_atomically(path: str | os.PathLike, write: Callable[[Path], Any]) -> None:
    """Call `write(temporary path)`, then rename: whoever reads `path` sees the old file or the whole new one.

    :raises UsageError: if the file cannot be written, for example because the disk is full.
    """
    path = Path(path)
    part = path.with_name(f'{path.name}.part{os.getpid()}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f'{glob.escape(path.name)}.part*'):  # by a run that was killed while it wrote
            left.unlink(missing_ok=True)
        try:
            write(part)
            with open(part, 'rb') as written:
                os.fsync(written.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f'{path} cannot be written ({error.strerror or error}); make room or give another path. '
            'What was there is unchanged.'
        ) from error


def check_writable(path: str | os.PathLike) -> None:
    """Check before a long computation that a file can be written at `path`, and leave nothing behind.

    :raises ValueError: with the reason.
    """
    path = Path(path)
    for folder in path.parents:
        if folder.is_file():
            raise ValueError(f'{folder} is a file, so nothing can be written below it; give another path')
    probe = path.with_name(f'{path.name}.probe{os.getpid()}')
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)  # another machine's process may have the same number
        with contextlib.suppress(OSError):  # another process may have written there meanwhile
            for folder in made:  # a run that is refused afterwards leaves no empty folder
                folder.rmdir()
    except OSError as error:
        raise ValueError(f'it cannot be written ({error.strerror or error}); give another path') from error


def save_states(states: dict[str, Any], path: str | os.PathLike) -> None:
    """Write a checkpoint."""
    import torch

    write_atomically(path, lambda part: torch.save(_plain(states), part))


def _plain(value: Any) -> Any:
    """Turn NumPy's numbers into Python's, because a checkpoint with NumPy's could not be read without running code.

    They come from ParlAI's invsqrt scheduler, which computes learning rates with NumPy.
    """
    import numpy as np

    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {_plain(k): _plain(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value


def save_json(value: Any, path: str | os.PathLike) -> None:
    """Write a value as JSON."""
    write_atomically(path, lambda part: part.write_text(json.dumps(value, indent=4), encoding='utf-8'))


# ---- reading ----------------------------------------------------------------------------------------------


def load_states(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint, with its tensors on the CPU.

    :raises UsageError: if the file is missing, damaged, of another format or not a checkpoint of this package.
    """
    import torch

    def load(path: str | os.PathLike) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torch warns of deprecated content in foreign files
            return torch.load(path, map_location='cpu', weights_only=True)

    states = read_checkpoint(path, load)
    with damage_explained(path):
        check_states(states)
    return states


def read_checkpoint(path: str | os.PathLike, load: Callable[[str | os.PathLike], Any]) -> dict[str, Any]:
    """Read a checkpoint with `load`. Only its format and the names in its description have been checked then.

    :raises UsageError: if the file is missing, cannot be read, has another format or is no checkpoint of this package.
    """
    try:
        with open(path, 'rb'):
            pass
        check_container(path)
        states = load(path)
    except FileNotFoundError as error:
        raise UsageError(f'{path}: no such file; give the model file of an SptAgent.') from error
    except IsADirectoryError as error:
        raise UsageError(f'{path} is a folder; give the model file in it.') from error
    except Exception as error:  # foreign bytes make the unpickler raise almost anything
        reason = str(error) if isinstance(error, Damage) else type(error).__name__
        raise UsageError(
            f'{path} is damaged or no checkpoint of this agent ({reason}); restore it from a copy, or give another '
            'model file.'
        ) from error
    if not isinstance(states, dict) or not isinstance(states.get('spt'), dict) or 'model' not in states:
        raise UsageError(f'{path} was not written by spt_parlai; give the model file of an SptAgent.')
    version = states['spt'].get('format')
    if type(version) is not int or version != FORMAT:
        found = shorten(version) if type(version) is int and abs(version) < 10**9 else 'unknown'
        raise UsageError(
            f'{path} has checkpoint format {found}, this version of spt_parlai reads {FORMAT}; install the version '
            'that wrote it.'
        )
    missing = [key for key in DESCRIPTION if key not in states['spt']]
    if missing:
        raise UsageError(
            f'{path} is damaged: it does not say its {missing[0]}; restore it from a copy, or give another model file.'
        )
    return states


@contextlib.contextmanager
def damage_explained(path: str | os.PathLike | None) -> Iterator[None]:
    """Report any error in using the content of a checkpoint as damage of that file.

    :raises UsageError: naming the file and the error.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        reason = ' '.join(str(error).split())[:200] or type(error).__name__
        raise UsageError(
            f'{path} is damaged ({reason}); restore it from a copy, or give another model file.'
        ) from error


# ---- the description --------------------------------------------------------------------------------------


def describe(
    llm,
    model,
    name: str,
    revision: str | None = None,
    seed: int | None = None,
    agent: str = 'SptAgent',
    tuning: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe what trained tensors belong to: the entry `spt` of a checkpoint.

    :param llm: the `CausalLM`.
    :param model: the `PromptedLM` around it.
    :param name, revision: how `--llm` and `--llm-revision` name the LLM.
    :param seed: the seed that the run began with.
    :param agent: kind of the agent.
    :param tuning: what trains in the LLM, as option → value.
    """
    return {
        'format': FORMAT,
        'agent': agent,
        'llm': name,
        'llm_revision': revision,
        'fingerprint': llm.fingerprint(),
        'word_size': llm.word_size,
        'num_prompts': model.soft_prompts.num_prompts,
        'prompt_length': model.soft_prompts.length,
        'tuning': tuning or {},
        'seed': seed,
    }


def check_kind(path: str | os.PathLike, saved: dict[str, Any], agent: str) -> None:
    """Refuse the checkpoint of an agent that trains something else.

    :raises UsageError: naming both agents.
    """
    other = saved.get('agent', 'SptAgent')  # the only agent there was when checkpoints did not say which
    if other != agent:
        raise UsageError(
            f'{path} is of {other}, not of {agent}: use -m spt_parlai.agents:{other}, or another model file.'
        )


def check_match(path: str | os.PathLike, saved: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse a checkpoint whose description does not match that of this run: another LLM, K, L or LoRA option.

    :param here: what is known of this run's description so far.
    :raises UsageError: naming both sides.
    """
    differing = [k for k, v in here['fingerprint'].items() if saved['fingerprint'].get(k) != v]
    if differing:
        detail = ', '.join(f'{k} {saved["fingerprint"].get(k)} / {here["fingerprint"][k]}' for k in differing)
        raise UsageError(
            f'{path} was trained around --llm {saved["llm"]}, which differs in shape from --llm {here["llm"]} '
            f'({detail}); use --llm {saved["llm"]} or another model file.'
        )
    for key, flag in (('num_prompts', '--num-prompts'), ('prompt_length', '--prompt-length')):
        if key in here and saved[key] != here[key]:
            raise UsageError(f'{path} holds {flag} {saved[key]}, not {here[key]}: leave {flag} out or train anew.')
    for flag, value in here.get('tuning', {}).items():
        found = saved.get('tuning', {}).get(flag, _UNSAID.get(flag))
        if found != value:
            raise UsageError(f'{path} holds {flag} {found}, not {value}: give {flag} {found}, or another model file.')
