"""The agents that ParlAI drives, as `-m spt_parlai.agents:NAME`. Each has a file of its own."""

from spt_parlai.agent.full_fine_tuning_agent import FullFineTuningAgent
from spt_parlai.agent.in_context_agent import InContextAgent
from spt_parlai.agent.lora_agent import LoraAgent
from spt_parlai.agent.prompt_tuning_agent import PromptTuningAgent
from spt_parlai.agent.rag_agent import RagAgent, SptRagAgent
from spt_parlai.agent.spt_agent import SptAgent
from spt_parlai.agent.text_prompt_agent import TextPromptAgent

__all__ = [
    'FullFineTuningAgent',
    'InContextAgent',
    'LoraAgent',
    'PromptTuningAgent',
    'RagAgent',
    'SptAgent',
    'SptRagAgent',
    'TextPromptAgent',
]
