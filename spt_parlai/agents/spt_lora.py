"""Selective Prompt Tuning and LoRA together: prompts, retriever and matrices train at the same time."""

from __future__ import annotations

from spt_parlai.agents.lora import LORA, LoraAgent
from spt_parlai.agents.spt import SptAgent
from spt_parlai.options.declare import Option, OptionGroup

SPT_LORA = OptionGroup(
    'SPT with LoRA',
    (
        Option(
            'lora_learningrate',
            0.001,
            'learning rate of the LoRA matrices; --learningrate is that of the prompts',
            float,
            above=0,
        ),
    ),
)


class SptLoraAgent(LoraAgent, SptAgent):
    """Selective Prompt Tuning around an LLM whose LoRA matrices train, too. All prompts share the matrices."""

    kind = 'SptLoraAgent'
    options = (*SptAgent.options, LORA, SPT_LORA)
    defaults = SptAgent.defaults

    def parameter_groups(self, params):
        """Give the matrices, which follow the prompts and the retriever, a learning rate of their own."""
        of_spt = len(params) - len([*self.bare_model.tuned.parameters()])
        groups = super().parameter_groups(params[:of_spt])
        groups = [group if isinstance(group, dict) else {'params': [group]} for group in groups]
        return [*groups, {'params': params[of_spt:], 'lr': self.opt['lora_learningrate']}]
