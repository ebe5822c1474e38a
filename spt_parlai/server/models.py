"""Model files, opened for the server."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parlai.core.agents import create_agent_from_model_file
from parlai.core.opt import Opt
from parlai.utils import logging

from spt_parlai import trained_models
from spt_parlai.agents.base import LLMAgent
from spt_parlai.errors import UsageError
from spt_parlai.server.engine import Engine


@dataclass(frozen=True)
class ServedModel:
    """A model that answers. name: how requests name it; about: what a client may know of it."""

    name: str
    engine: Engine
    about: dict[str, Any]


def name_of(model_file: str) -> str:
    """`spt:NAME` for a model inside the package; otherwise the last folder and the file's name."""
    path = Path(trained_models.resolve(model_file))
    return trained_models.name_of(str(path)) or '/'.join(path.absolute().parts[-2:])


def open_agent(model_file: str, **options: Any) -> LLMAgent:
    """The agent of a model file or of a name inside the package.

    :param options: those that replace the model file's.
    :raises UsageError: if there is none, there is no such option, or its LLM does not run here.
    """
    path = trained_models.resolve(model_file)
    if not Path(path).is_file():
        raise UsageError(
            f'{model_file}: there is no such model file; give the -mf of a training run, or see spt models.'
        )
    known = Opt.load(f'{path}.opt') if options else {}
    for name in options.keys() - known.keys():
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
        raise UsageError(f'{name}={options[name]!r}: {model_file} has no such option; did you mean {nearest[0]}?')
    logging.disable()
    try:
        agent = create_agent_from_model_file(path, {**options, 'datatype': 'valid', 'interactive_mode': False})
    finally:
        logging.enable()
    if not isinstance(agent, LLMAgent):
        raise UsageError(f'{model_file} is of {type(agent).__name__}, which has no LLM of its own to serve.')
    return agent


def open_model(model_file: str, name: str | None = None) -> ServedModel:
    """Load a model file and start its engine."""
    return serve_agent(open_agent(model_file), name or name_of(model_file))


def serve_agent(agent: LLMAgent, name: str, **limits: int) -> ServedModel:
    """Start an agent's engine. limits: those of `Engine`."""
    engine = Engine(agent, **limits)
    about = {
        'spt_agent': agent.kind,
        'spt_llm': agent.opt['llm'],
        'spt_num_prompts': engine.num_prompts,
        'spt_usual_tokens': engine.usual_tokens,
        'spt_most_tokens': engine.most_tokens,
    }
    return ServedModel(name, engine, about)
