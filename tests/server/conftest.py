"""A tiny SPT model for the server."""

import pytest
from helpers.runs import agent_of
from helpers.tiny import trained_tensors, write_llm

from spt_parlai.server.models import serve_agent


@pytest.fixture(scope='package')
def spt_agent(tmp_path_factory):
    """An agent whose prompts give different replies."""
    folder = str(tmp_path_factory.mktemp('llm'))
    write_llm('opt', folder)
    agent = agent_of(folder, max_new_tokens=12)
    agent.model.load_state_dict({**agent.model.state_dict(), **trained_tensors()})
    return agent


@pytest.fixture(scope='package')
def model(spt_agent):
    served = serve_agent(spt_agent.clone(), 'tiny/model')
    yield served
    served.engine.close()
