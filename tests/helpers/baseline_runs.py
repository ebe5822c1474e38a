"""Short runs of ParlAI's scripts with each agent, around a tiny LLM."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from parlai.core.agents import create_agent
from parlai.scripts.eval_model import EvalModel
from parlai.scripts.train_model import TrainModel

AGENTS = 'spt_parlai.agents:'
SAMPLE = 'spt_parlai.tasks.sample'
TINY = {
    'task': SAMPLE,
    'label_truncate': 24,
    'max_new_tokens': 6,
    'batchsize': 2,
    'validation_max_exs': 8,
    'short_final_eval': True,
    'seed': 7,
    'save_every_n_secs': -1,
    'log_every_n_steps': 1,
}


def options(agent: str, llm: str, **more) -> dict:
    """The options of a `parlai train_model`; None leaves one out."""
    given = {**TINY, 'model': AGENTS + agent, 'llm': llm, **more}
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in given.items() if value is not None
    }


def train(agent: str, llm: str, model_file, **more):
    """`parlai train_model`: (validation report, test report)."""
    return TrainModel.main(**options(agent, llm, model_file=model_file, **more))


def evaluate(**more) -> dict[str, float]:
    """`parlai eval_model` on the sample task's valid fold, as plain numbers."""
    report = EvalModel.main(**{'task': SAMPLE, 'datatype': 'valid', 'batchsize': 4, **more})
    return {name: float(value) for name, value in report.items()}


def agent_of(agent: str, llm: str, **more):
    """An agent ready to train."""
    return create_agent(TrainModel.setup_args().parse_kwargs(**options(agent, llm, **more)))


def curve(model_file, name: str = 'spt_loss') -> dict[int, float]:
    """step → a number of the training log."""
    reports = json.loads(Path(f'{model_file}.trainstats').read_text())['train_reports']
    return {report['train_steps']: report[name] for report in reports}


def states(path) -> dict:
    return torch.load(path, weights_only=True)
