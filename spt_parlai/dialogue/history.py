"""ParlAI's `History` as persona and turns instead of one string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from parlai.core.torch_agent import History

from spt_parlai.dialogue.messages import Dialogue
from spt_parlai.dialogue.template import Context, build_context

ContextOf = Callable[[Dialogue, 'int | None', Sequence[str]], Context]
"""Renders a context: (dialogue, most tokens or None, the next reply or its alternatives if known) → context."""


class DialogueHistory(History):
    """The dialogue so far, and the context that it gives.

    :param persona: sentences that are known before the first message, in interactive use. A reset returns to them.
    :param context_of: renders the context; the method's template by default.
    """

    def __init__(self, opt, persona: Sequence[str] = (), context_of: ContextOf | None = None, **kwargs):
        self.given_persona = list(persona)
        self._context_of = context_of
        super().__init__(opt, **kwargs)
        self.reset()

    def parse(self, text):
        return []  # the base class tokenizes its delimiter with this, but no delimiter is used here

    def reset(self) -> None:
        self.dialogue = Dialogue(persona=list(self.given_persona))

    def update_history(self, obs, temp_history: str | None = None) -> None:
        if obs.get(self.field) is not None:
            self.dialogue.observe(obs[self.field])
            self.dialogue.keep_newest(self.size)
        self.temp_history = temp_history

    def add_reply(self, text: str) -> None:
        self.dialogue.reply(text)
        self.dialogue.keep_newest(self.size)

    def context(self, replies: Sequence[str] = (), whole: bool = False) -> Context:
        """Return the context of the next reply, at most `max_len` tokens.

        :param replies: that reply or its alternatives, if known.
        :param whole: return it without truncation.
        """
        dialogue, limit = self.dialogue, None if whole else self.max_len
        if self.temp_history is not None:  # part of this turn only
            dialogue = Dialogue(list(dialogue.persona), list(dialogue.turns))
            dialogue.observe(self.temp_history)
        if self._context_of is not None:
            return self._context_of(dialogue, limit, replies)
        return build_context(dialogue, self.dict.piece, self.dict.bos, limit)

    def get_history_str(self) -> str:
        return self.context().text

    def get_history_vec(self) -> list[int]:
        return list(self.context().ids)

    def get_history_vec_list(self) -> list[list[int]]:
        return [self.get_history_vec()]
