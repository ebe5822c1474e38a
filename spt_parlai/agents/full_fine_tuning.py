"""Full fine-tuning: all weights of a small LLM train; no soft prompt."""

from __future__ import annotations

from spt_parlai.agents.base import PromptedAgent
from spt_parlai.errors import UsageError
from spt_parlai.model.adapters import TunedWeights, tune_all


class FullFineTuningAgent(PromptedAgent):
    """The control of the paper's introduction. The LLM stays in eval mode: without dropout, as under every other agent."""

    kind = 'FullFineTuningAgent'

    @classmethod
    def add_cmdline_args(cls, parser, partial_opt=None):
        super().add_cmdline_args(parser, partial_opt)
        parser.set_defaults(learningrate=2e-5)
        return parser

    def __init__(self, opt, shared=None):
        for name in ('llm_dtype', 'llm_quantization', 'fp16'):
            if opt.get(name) not in ('auto', 'none', 'float32', False, None):
                raise UsageError(
                    f'--{name.replace("_", "-")} {opt[name]}: all weights train, and do so in float32; leave it out, or train LoRA matrices '
                    'with -m spt_parlai.agents:LoraAgent.'
                )
        super().__init__(opt, shared)

    def _llm_dtype(self) -> str:
        return 'float32'

    def tune(self, llm) -> TunedWeights:
        return tune_all(llm)
