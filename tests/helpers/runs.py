"""Small runs of ParlAI's own scripts with the agents of this package, in process, on the sample task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from parlai.core.agents import create_agent
from parlai.core.opt import Opt
from parlai.core.worlds import create_task
from parlai.scripts.eval_model import EvalModel
from parlai.scripts.train_model import TrainModel

AGENTS = 'spt_parlai.agents:'
AGENT = AGENTS + 'SptAgent'
SAMPLE = 'spt_parlai.tasks.sample'
SHORT = {  # options of every agent that trains
    'task': SAMPLE,
    'label_truncate': 24,
    'max_new_tokens': 8,
    'batchsize': 4,
    'validation_max_exs': 8,
    'short_final_eval': True,
    'seed': 7,
    'save_every_n_secs': -1,
}
SMALL = {**SHORT, 'model': AGENT, 'num_prompts': 3, 'prompt_length': 2}  # a small SptAgent


def options(llm, agent: str = 'SptAgent', **more: Any) -> dict[str, Any]:
    """The keyword arguments of a `parlai train_model`: those of a small run, changed by `more`; None leaves one out."""
    small = SMALL if agent == 'SptAgent' else {**SHORT, 'model': AGENTS + agent}
    return _given({**small, 'llm': llm, **more})


def training_opt(llm, agent: str = 'SptAgent', **more: Any) -> Opt:
    """The same, as ParlAI parses them."""
    return TrainModel.setup_args().parse_kwargs(**options(llm, agent, **more))


def agent_of(llm, agent: str = 'SptAgent', **more: Any):
    """An agent that is ready to train."""
    return create_agent(training_opt(llm, agent, **more))


def batch_of(agent, packed):
    """A training batch of two dialogues of the sample task."""
    opt = Opt({**agent.opt, 'datatype': 'train:ordered', 'batchsize': 1})
    opt['mutators'] = 'whole_dialogue' if packed else None
    teacher, seen, done = create_task(opt, agent).agents[0], [], 0
    while done < 2:
        message = teacher.act()
        seen.append(agent.observe(message))
        agent.self_observe(agent.observation | {'text': '', 'episode_done': message['episode_done']})
        done += message['episode_done']
    return agent.batchify(seen)


def train(model_file, llm, agent: str = 'SptAgent', **more: Any):
    """Run `parlai train_model`; returns its validation report and its test report.

    Unless `more` says otherwise, contexts are cut to 48 tokens: steps take 0.4 of the time that whole ones take.
    """
    return TrainModel.main(**options(llm, agent, **{'model_file': model_file, 'text_truncate': 48, **more}))


def evaluate(model_file=None, **more: Any) -> dict[str, float]:
    """Run `parlai eval_model`, by default on the sample task's valid fold; returns the report as plain numbers."""
    defaults = {'task': SAMPLE, 'datatype': 'valid', 'batchsize': 4}
    report = EvalModel.main(**_given({**defaults, 'model_file': model_file, **more}))
    return {name: float(value) for name, value in report.items()}


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in options.items() if value is not None
    }


def logged(model_file, name: str = 'spt_loss') -> dict[int, float]:
    """A number of the training log: training step → value, for the steps that logged it."""
    reports = json.loads(Path(f'{model_file}.trainstats').read_text())['train_reports']
    return {report['train_steps']: report[name] for report in reports if name in report}


def states(model_file) -> dict[str, Any]:
    """What a model file holds."""
    return torch.load(model_file, weights_only=True)


def turns(log: Path) -> list[list[dict[str, Any]]]:
    """The turns of a `--world-logs` file in ParlAI's conversations format."""
    lines = log.with_suffix('.jsonl').read_text().splitlines()
    return [turn for line in lines for turn in json.loads(line)['dialog']]
