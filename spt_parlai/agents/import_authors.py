"""Convert a checkpoint of the paper's authors to a model file of SptAgent, which the agent itself writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parlai.core.agents import create_agent
from parlai.scripts.train_model import TrainModel

from spt_parlai.checkpoints.authors import AuthorsCheckpoint, read_authors
from spt_parlai.checkpoints.files import check_writable
from spt_parlai.errors import UsageError, naming
from spt_parlai.hub import load_config

AGENT = 'spt_parlai.agents:SptAgent'


def import_authors(
    source: str | Path, llm: str, out: str | Path, revision: str | None = None, dtype: str = 'auto', force: bool = False
) -> AuthorsCheckpoint:
    """Write `out`, `out`.opt and `out`.dict: an SptAgent around `llm` with the prompts and linear layer of `source`.

    The agent itself writes these files, so they are like those of a training run.

    :return: what was read.
    :raises UsageError: if the source cannot be used, `llm` has another width, or `out` exists (unless `force`).
    """
    out = _writable(Path(out).expanduser(), force)
    found = read_authors(source)
    if found.weight is None or found.bias is None:
        lacking = 'weight' if found.weight is None else 'bias'
        raise UsageError(
            f'{source} holds no prompt_normalizer.{lacking}, the linear layer of its retriever; '
            'give a checkpoint trained with "normalizer: linear".'
        )
    K, L, D = found.prompts.shape
    hidden_size = load_config(llm, revision).hidden_size
    if hidden_size != D:
        raise UsageError(
            f'{source} holds prompts {D} wide, but --llm {llm} is {hidden_size} wide; give the LLM they were trained '
            'around.'
        )
    agent = _new_agent(llm=llm, llm_revision=revision, llm_dtype=dtype, num_prompts=K, prompt_length=L)
    linear = {'weight': found.weight, 'bias': found.bias}
    agent.bare_model.soft_prompts.load_state_dict({'tokens': found.prompts})
    agent.bare_model.retriever.lin_context.load_state_dict(linear)
    agent.bare_model.retriever.lin_prompt.load_state_dict(linear)
    for stale in _training_files(out):
        stale.unlink()
    agent.opt.update(model_file=str(out), datatype='train')  # the options of a training run
    agent.opt['override'].pop('datatype')
    agent.save()
    return found


def _new_agent(**options) -> Any:
    """An untrained SptAgent with the defaults of training but no optimizer.

    It has no model file yet, so that it does not load an old one.
    """
    options = {name: value for name, value in options.items() if value is not None}
    return create_agent(TrainModel.setup_args().parse_kwargs(model=AGENT, datatype='valid', **options))


def _writable(out: Path, force: bool) -> Path:
    if out.is_dir():
        raise UsageError(f'--out {out} is a folder; give the path of a model file, such as {out / "model"}.')
    there = [path for path in (out, *_training_files(out)) if path.exists()]
    if there and not force:
        raise UsageError(f'--out {out}: {there[0]} exists; give another path, or --force to replace the model.')
    with naming('--out', out):
        check_writable(out)
    return out


def _training_files(out: Path) -> list[Path]:
    """Files that a training run left beside a model: checkpoints that would be resumed, reports of another model."""
    return sorted(
        path
        for path in out.parent.glob('*')
        if path.name in {out.name + suffix for suffix in ('.trainstats', '.valid', '.test', '.metrics.jsonl')}
        or path.name.startswith(f'{out.name}.checkpoint')
    )
