"""Prompt tuning: one soft prompt before every context of a frozen LLM."""

from __future__ import annotations

from spt_parlai.agents.base import PromptedAgent
from spt_parlai.checkpoints.prompts import read_prompts
from spt_parlai.errors import naming
from spt_parlai.model.soft_prompts import SoftPromptGroup, initial_prompts
from spt_parlai.options.groups import SOFT_PROMPTS


class PromptTuningAgent(PromptedAgent):
    """The baseline of tables 1 and 4: SPT with K = 1 and all λ = 0, update for update."""

    kind = 'PromptTuningAgent'
    num_prompts = 1

    @classmethod
    def add_cmdline_args(cls, parser, partial_opt=None):
        super().add_cmdline_args(parser, partial_opt)
        SOFT_PROMPTS.add_to(parser)
        return parser

    def build_prompts(self, llm) -> SoftPromptGroup:
        init = 'normal' if self.loads_model else self.opt['prompt_init']
        K, L = self.num_prompts, self.opt['prompt_length']
        with naming(f'--prompt-init {init} with --num-prompts {K} and --prompt-length', L):
            tokens = initial_prompts(init, K, L, llm.embed, self.dict.txt2vec, len(self.dict), read_prompts)
        return SoftPromptGroup(tokens)
