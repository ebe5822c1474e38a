"""What a checkpoint says besides its tensors, and how one is written and read without ever being half there.

A checkpoint holds the trainable tensors, optimizer and scheduler, the LLM's name, revision and shape fingerprint,
and the progress of the training run; never the LLM. It is plain data: reading one runs no code.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spt_parlai.checkpoints.schema import Damage, check_container, check_states
from spt_parlai.errors import UsageError, shorten

FORMAT = 1
DESCRIPTION = ('llm', 'fingerprint', 'num_prompts', 'prompt_length')


def write_atomically(path: str | os.PathLike, write) -> None:
    """`write(temporary path)`, then rename: whoever reads `path` sees the old file or the whole new one.

    :raises UsageError: where nothing can be written, or the disk is full.
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
            f'{str(path).removesuffix(".probe")} cannot be written ({error.strerror or error}); make room or give another --model-file. What was there is unchanged.'
        ) from error


def check_writable(path: str | os.PathLike) -> None:
    """Before anything slow: can a file be written at `path`? Raises UsageError if not. Leaves nothing behind."""
    blocked = [folder for folder in Path(path).parents if folder.is_file()]
    if blocked:
        raise UsageError(
            f'--model-file {path}: {blocked[0]} is a file, so nothing can be written below it; give another path.'
        )
    probe = Path(f'{path}.probe')
    write_atomically(probe, lambda part: part.touch())
    probe.unlink()


def save_states(states: dict[str, Any], path: str | os.PathLike) -> None:
    write_atomically(path, lambda part: torch.save(_plain(states), part))


def _plain(value: Any) -> Any:
    """NumPy's numbers (ParlAI's invsqrt scheduler computes learning rates with them) as Python's: a checkpoint with
    any of them could not be read without running code."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {_plain(k): _plain(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value


def save_json(value: Any, path: str | os.PathLike) -> None:
    write_atomically(path, lambda part: part.write_text(json.dumps(value, indent=4), encoding='utf-8'))


def load_states(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint on the CPU. Raises UsageError for a file that is damaged or not one of ours."""
    try:
        with open(path, 'rb'):
            pass
        check_container(path)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of what a foreign file makes torch deprecate
            states = torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError as error:
        raise UsageError(f'{path}: no such file; give the model file of an SptAgent.') from error
    except IsADirectoryError as error:
        raise UsageError(f'{path} is a folder; give the model file in it.') from error
    except Exception as error:  # foreign bytes make the unpickler raise almost anything
        reason = str(error) if isinstance(error, Damage) else type(error).__name__
        raise UsageError(
            f'{path} is damaged or no checkpoint of this agent ({reason}); restore it from a copy, or give another model file.'
        ) from error
    if not isinstance(states, dict) or not isinstance(states.get('spt'), dict) or 'model' not in states:
        raise UsageError(f'{path} was not written by spt_parlai; give the model file of an SptAgent.')
    version = states['spt'].get('format')
    if type(version) is not int or version != FORMAT:
        raise UsageError(
            f'{path} has checkpoint format {shorten(version) if type(version) is int and abs(version) < 10**9 else "unknown"}, this version '
            f'of spt_parlai reads {FORMAT}; install the version that wrote it.'
        )
    missing = [key for key in DESCRIPTION if key not in states['spt']]
    if missing:
        raise UsageError(
            f'{path} is damaged: it does not say its {missing[0]}; restore it from a copy, or give another model file.'
        )
    with damage_explained(path):
        check_states(states)
    return states


@contextlib.contextmanager
def damage_explained(path: str | os.PathLike | None):
    """Whatever goes wrong while a checkpoint is taken in is the checkpoint's fault, and said as that."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        reason = ' '.join(str(error).split())[:200] or type(error).__name__
        raise UsageError(
            f'{path} is damaged ({reason}); restore it from a copy, or give another model file.'
        ) from error


def describe(opt, llm, model, agent: str = 'SptAgent', tuning: dict[str, Any] | None = None) -> dict[str, Any]:
    """The `spt` entry of a checkpoint. agent: its kind; tuning: which weights of the LLM train, option → value."""
    return {
        'format': FORMAT,
        'agent': agent,
        'llm': opt['llm'],
        'llm_revision': opt.get('llm_revision'),
        'fingerprint': llm.fingerprint(),
        'word_size': llm.word_size,
        'num_prompts': model.soft_prompts.num_prompts,
        'prompt_length': model.soft_prompts.length,
        'tuning': tuning or {},
        'seed': opt.get('seed'),
    }


def check_kind(path: str | os.PathLike, saved: dict[str, Any], agent: str) -> None:
    """Refuse the checkpoint of an agent that trains something else."""
    other = saved.get('agent', 'SptAgent')  # which wrote all that do not say
    if other != agent:
        raise UsageError(
            f'{path} is of {other}, not of {agent}: use -m spt_parlai.agents:{other}, or another model file.'
        )


def check_match(path: str | os.PathLike, saved: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse a checkpoint made around another LLM or with other K and L, naming both sides."""
    if saved['fingerprint'] != here['fingerprint']:
        differing = [k for k, v in here['fingerprint'].items() if saved['fingerprint'].get(k) != v]
        detail = ', '.join(f'{k} {saved["fingerprint"].get(k)} / {here["fingerprint"][k]}' for k in differing)
        raise UsageError(
            f'{path} was trained around --llm {saved["llm"]}, which differs in shape from --llm {here["llm"]} ({detail}); '
            f'use --llm {saved["llm"]} or another model file.'
        )
    for key, flag in (('num_prompts', '--num-prompts'), ('prompt_length', '--prompt-length')):
        if saved[key] != here[key]:
            raise UsageError(f'{path} holds {flag} {saved[key]}, not {here[key]}: leave {flag} out or train anew.')
    for flag, value in here.get('tuning', {}).items():
        found = saved.get('tuning', {}).get(flag)
        if found != value:
            raise UsageError(f'{path} holds {flag} {found}, not {value}: give {flag} {found}, or another model file.')
