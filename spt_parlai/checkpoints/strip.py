"""A model file without what only training needs."""

from __future__ import annotations

import json
import os
from pathlib import Path

from spt_parlai.checkpoints.files import load_states, save_json, save_states
from spt_parlai.errors import UsageError

_OF_THE_RUN = (  # options of the machine and the run, which evaluation and chats do not read
    *('model_file', 'dict_file', 'parlai_home', 'starttime', 'prompt_init', 'prompt_init_noise', 'num_workers'),
    *(
        'skip_generation',
        'world_logs',
        'report_filename',
        'tensorboard_log',
        'tensorboard_logdir',
        'wandb_log',
        'persona_file',
    ),
)


def strip(model_file: str | os.PathLike, out: str | os.PathLike, llm: str | None = None, force: bool = False) -> int:
    """Copy a model file without the optimizer, the progress of its run and its paths, and return the copy's size.

    The copy evaluates, chats, and begins new runs (`--init-model`); it continues none.

    :param llm: `--llm` of the copy, another name of the same LLM; None keeps it.
    :raises UsageError: for a file that cannot be read, or a copy that exists already.
    """
    states = load_states(model_file)
    out = Path(out)
    if out.exists() and not force:
        raise UsageError(f'{out} exists already; give another path, or --force to replace it.')
    options = json.loads(Path(f'{model_file}.opt').read_text(encoding='utf-8'))
    options = {name: value for name, value in options.items() if name not in _OF_THE_RUN}
    if llm is not None:
        options['llm'] = states['spt']['llm'] = llm
    save_json(options, f'{out}.opt')
    Path(f'{out}.dict').write_text(f'the tokenizer of --llm {options["llm"]}\n', encoding='utf-8')
    save_states({'model': states['model'], 'spt': states['spt']}, out)
    return sum(Path(f'{out}{suffix}').stat().st_size for suffix in ('', '.opt', '.dict'))
