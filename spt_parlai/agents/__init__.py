"""The agents that ParlAI runs, as `-m spt_parlai.agents:NAME`, in one file each; the two RAG agents share `rag.py`."""

import parlai  # noqa: F401  this installs the hooks, before a file of this room imports more of ParlAI

from spt_parlai.agents.full_fine_tuning import FullFineTuningAgent
from spt_parlai.agents.in_context import InContextAgent
from spt_parlai.agents.in_context_api import InContextApiAgent
from spt_parlai.agents.lora import LoraAgent
from spt_parlai.agents.prompt_tuning import PromptTuningAgent
from spt_parlai.agents.rag import RagAgent, SptRagAgent
from spt_parlai.agents.spt import SptAgent
from spt_parlai.agents.spt_lora import SptLoraAgent
from spt_parlai.agents.text_prompt import TextPromptAgent

__all__ = [
    'FullFineTuningAgent',
    'InContextAgent',
    'InContextApiAgent',
    'LoraAgent',
    'PromptTuningAgent',
    'RagAgent',
    'SptAgent',
    'SptLoraAgent',
    'SptRagAgent',
    'TextPromptAgent',
]
