"""What a training run is told before its first step about the files that it begins from, or will be kept in."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from parlai.utils import logging
from parlai.utils.distributed import sync_object

from spt_parlai.errors import UsageError
from spt_parlai.training.checkpoint import load_states

_IN_THE_OPTIMIZER = ('learningrate', 'momentum')


def settle_model_file(opt) -> None:
    """ParlAI wants a model file or a dictionary file. A run of ours that was given neither is kept, in a new folder."""
    if not opt.get('model_file') and not opt.get('dict_file'):
        opt['model_file'] = str(Path('runs', sync_object(time.strftime('%Y%m%d-%H%M%S')), 'model'))
        logging.warning(f'No --model-file was given: this run is kept in {opt["model_file"]}.')


def check_best(opt, checkpoint: Path) -> None:
    """A run that continues from its `.checkpoint` loads its best model at its end: is that whole?

    :raises UsageError: if not; before any training.
    """
    best = Path(opt['model_file'])
    if checkpoint == best or not best.exists():
        return
    try:
        load_states(best)
    except UsageError as error:
        raise UsageError(
            f'{error} {checkpoint} is whole: without {best} the run continues from there, and has lost its best model so far.'
        ) from error


def settle_changes(opt, saved: dict[str, Any], checkpoint: Path) -> None:
    """A continued run keeps its seed and its optimizer's settings; a command that says otherwise is told."""
    asked, kept = opt.get('override') or {}, {}
    if saved['spt'].get('seed') is not None:
        kept['seed'] = saved['spt']['seed']
    if saved.get('optimizer_type') == opt.get('optimizer'):  # another optimizer starts anew
        with contextlib.suppress(OSError, ValueError):
            stored = json.loads(Path(f'{checkpoint}.opt').read_text(encoding='utf-8'))
            kept.update((name, stored[name]) for name in _IN_THE_OPTIMIZER if name in stored)
    for name, value in kept.items():
        if name in asked and asked[name] != value:
            logging.warning(
                f'--{name} {asked[name]}: {checkpoint} continues, and keeps --{name} {value}; give another --model-file to begin anew.'
            )
            opt[name] = asked[name] = value
