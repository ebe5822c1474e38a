"""In-context learning with an LLM behind an OpenAI-compatible endpoint: no LLM, no tokenizer and no model file is here."""

from __future__ import annotations

import json

from parlai.core.agents import Agent
from parlai.core.message import Message
from parlai.core.params import ParlaiParser

from spt_parlai.agent.chat import persona_of
from spt_parlai.dialogue.instruction import chat_messages
from spt_parlai.dialogue.messages import Dialogue, check_message
from spt_parlai.endpoint import ChatEndpoint
from spt_parlai.errors import UsageError, shorten
from spt_parlai.metrics.teachers import chosen_bert


class EndpointAgent(Agent):
    pass
