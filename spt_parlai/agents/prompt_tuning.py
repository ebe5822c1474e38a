"""Prompt tuning: one soft prompt before every context of a frozen LLM."""

from __future__ import annotations

from spt_parlai.agents.base import LLMAgent
from spt_parlai.checkpoints.prompts import read_prompts
from spt_parlai.errors import naming
from spt_parlai.model.causal_lm import CausalLM
from spt_parlai.model.soft_prompts import SoftPromptGroup, initial_prompts
from spt_parlai.options.groups import SOFT_PROMPTS


class PromptTuningAgent(LLMAgent):
    """The baseline of tables 1 and 4: SPT with K = 1 and every λ = 0, update for update."""

    kind = 'PromptTuningAgent'
    options = (*LLMAgent.options, SOFT_PROMPTS)

    @property
    def num_prompts(self) -> int:
        return 1

    def build_prompts(self, llm: CausalLM) -> SoftPromptGroup:
        init = 'normal' if self.persistence.loads else self.opt['prompt_init']
        K, L = self.num_prompts, self.opt['prompt_length']
        with naming(f'--prompt-init {init} with --num-prompts {K} and --prompt-length', L):
            tokens = initial_prompts(init, K, L, llm.embed, self.dict.txt2vec, len(self.dict), read_prompts)
        return SoftPromptGroup(tokens)
