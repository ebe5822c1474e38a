"""Textual prompting: words of one's own before every context of a frozen LLM."""

from __future__ import annotations

from functools import cached_property

from spt_parlai.agents.base import PromptedAgent
from spt_parlai.agents.batching import SMALLEST_CONTEXT
from spt_parlai.dialogue.template import build_context
from spt_parlai.errors import UsageError, shorten
from spt_parlai.options.groups import TEXT_PROMPT


class TextPromptAgent(PromptedAgent):
    """The control of the paper's introduction. The context comes after BOS and the text; without a text it is the LLM alone."""

    kind = 'TextPromptAgent'
    trains = False

    @classmethod
    def add_cmdline_args(cls, parser, partial_opt=None):
        super().add_cmdline_args(parser, partial_opt)
        TEXT_PROMPT.add_to(parser)
        return parser

    def build_model(self):
        room = self.text_truncate - SMALLEST_CONTEXT
        if len(self._prompt) > room:
            raise UsageError(
                f'--prompt-text {shorten(self.opt["prompt_text"])}: of its {len(self._prompt)} tokens the context has room for {room}; shorten it.'
            )
        return super().build_model()

    @cached_property
    def _prompt(self) -> list[int]:
        return list(self.dict.piece(self.opt['prompt_text'], True)) if self.opt['prompt_text'] else []

    def context_of(self, dialogue, limit, _replies=()):
        return build_context(dialogue, self.dict.piece, self.dict.bos, limit, self._prompt)
