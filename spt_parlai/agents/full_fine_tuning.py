"""Full fine-tuning: all weights of a small LLM train; there is no soft prompt."""

from __future__ import annotations

from spt_parlai.agents.base import LLMAgent
from spt_parlai.errors import UsageError
from spt_parlai.model.adapters import TunedWeights, tune_all
from spt_parlai.model.causal_lm import CausalLM


class FullFineTuningAgent(LLMAgent):
    """The control of the paper's introduction. The LLM stays in eval mode, without dropout, as under every agent."""

    kind = 'FullFineTuningAgent'
    llm_dtype = 'float32'
    defaults = {'learningrate': 2e-5}

    def __init__(self, opt, shared=None):
        for name in ('llm_dtype', 'llm_quantization', 'fp16'):
            if opt.get(name) not in ('auto', 'none', 'float32', False, None):
                raise UsageError(
                    f'--{name.replace("_", "-")} {opt[name]}: all weights train, and do so in float32; leave it out, '
                    'or train LoRA matrices with -m spt_parlai.agents:LoraAgent.'
                )
        if opt.get('llm_sharding', 'none') != 'none':
            raise UsageError(
                f'--llm-sharding {opt["llm_sharding"]}: only frozen weights are divided, and all weights train here; '
                'leave it out, or train LoRA matrices with -m spt_parlai.agents:LoraAgent.'
            )
        super().__init__(opt, shared)

    def tune(self, llm: CausalLM) -> TunedWeights:
        return tune_all(llm)
