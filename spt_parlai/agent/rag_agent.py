"""Retrieval before prompts: the paper's RAG baseline, and SPT with retrieval, which the paper leaves for future work."""

from __future__ import annotations

from spt_parlai.agent.prompt_tuning_agent import PromptTuningAgent
from spt_parlai.agent.retrieving import Retrieving
from spt_parlai.agent.spt_agent import SptAgent


class RagAgent(Retrieving, PromptTuningAgent):
    """Prompt tuning with the most similar training dialogues before every context (appendix A.6)."""

    kind = 'RagAgent'


class SptRagAgent(Retrieving, SptAgent):
    """Selective Prompt Tuning with the most similar training dialogues before every context.

    The retriever of eq. 1 scores the dialogue's own context alone, and the contrast compares such contexts.
    """

    kind = 'SptRagAgent'
