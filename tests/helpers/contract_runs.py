"""Short runs of ParlAI's scripts around a tiny LLM, for this folder."""

from __future__ import annotations

import json
from pathlib import Path

from parlai.core.agents import create_agent
from parlai.scripts import train_model
from parlai.scripts.eval_model import EvalModel

AGENT = 'spt_parlai.agents:SptAgent'
SAMPLE = 'spt_parlai.tasks.sample'
TINY = {
    'task': SAMPLE,
    'model': AGENT,
    'num_prompts': 2,
    'prompt_length': 2,
    'label_truncate': 24,
    'max_new_tokens': 6,
    'batchsize': 4,
    'validation_max_exs': 8,
    'short_final_eval': True,
    'seed': 7,
    'save_every_n_secs': -1,
    'prompt_init': 'embedding-scale',
}


def _given(options: dict) -> dict:
    return {k: str(v) if isinstance(v, Path) else v for k, v in options.items() if v is not None}


def training(llm, **options) -> dict:
    """The options of a `parlai train_model`; None leaves one out."""
    return train_model.TrainModel.setup_args().parse_kwargs(**_given({**TINY, 'llm': llm, **options}))


def train(llm, **options):
    """`parlai train_model`: (validation report, test report)."""
    return train_model.TrainModel.main(**_given({**TINY, 'llm': llm, **options}))


def evaluate(model_file, **options) -> dict[str, float]:
    """`parlai eval_model`, by default on the valid fold of the sample task, as plain numbers."""
    report = EvalModel.main(
        **_given({'model_file': model_file, 'task': SAMPLE, 'datatype': 'valid', 'batchsize': 4, **options})
    )
    return {k: float(v) for k, v in report.items()}


def agent_of(llm, **options):
    """An agent ready to train."""
    return create_agent(training(llm, **options))


def logged(model_file, name: str) -> dict[int, float]:
    """step → what the training log says of `name`."""
    stats = json.loads(Path(f'{model_file}.trainstats').read_text())
    return {r['train_steps']: r[name] for r in stats['train_reports'] if name in r}


def turns(log: Path) -> list[list[dict]]:
    """The turns of a `--world-logs` file in ParlAI's conversations format."""
    lines = log.with_suffix('.jsonl').read_text().splitlines()
    return [turn for line in lines for turn in json.loads(line)['dialog']]
