"""Textual prompting: your own words before every context of a frozen LLM."""

from __future__ import annotations

from functools import cached_property

from spt_parlai.agents.base import LLMAgent
from spt_parlai.agents.batching import SMALLEST_CONTEXT
from spt_parlai.dialogue.template import build_context
from spt_parlai.errors import UsageError, shorten
from spt_parlai.options.declare import Option, OptionGroup

TEXT_PROMPT = OptionGroup(
    'Textual prompting', (Option('prompt_text', '', 'words before every context, as given (default: none)'),)
)


class TextPromptAgent(LLMAgent):
    """The control of the paper's introduction: BOS, the text, then the context. Without a text it is the LLM alone."""

    kind = 'TextPromptAgent'
    trains = False
    options = (*LLMAgent.options, TEXT_PROMPT)

    def build_model(self):
        """Check that the text leaves room for the dialogue, then build the model.

        :raises UsageError: if it does not.
        """
        room = self.text_truncate - SMALLEST_CONTEXT
        if len(self._prompt) > room:
            raise UsageError(
                f'--prompt-text {shorten(self.opt["prompt_text"])}: it is {len(self._prompt)} tokens long, and the '
                f'context has room for {room}; shorten it.'
            )
        return super().build_model()

    @cached_property
    def _prompt(self) -> list[int]:
        return list(self.dict.piece(self.opt['prompt_text'], True)) if self.opt['prompt_text'] else []

    def context_of(self, dialogue, limit, _replies=()):
        return build_context(dialogue, self.dict.piece, self.dict.bos, limit, self._prompt)
