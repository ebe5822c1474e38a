"""ParlAI's `History`, kept as persona and turns instead of one string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from parlai.core.torch_agent import History

from spt_parlai.dialogue.messages import Dialogue
from spt_parlai.dialogue.template import Context, build_context

ContextOf = Callable[[Dialogue, 'int | None', Sequence[str]], Context]
"""(dialogue, longest context in tokens, what its next reply may be where that is known) → context."""


class DialogueHistory(History):
    """The dialogue so far, rendered by the method's template.

    :param persona: sentences known before the first message (interactive use); every reset returns to them.
    :param context_of: renders it otherwise.
    """

    def __init__(self, opt, persona: Sequence[str] = (), context_of: ContextOf | None = None, **kwargs):
        self.given_persona = list(persona)
        self._context_of = context_of or self._by_template
        super().__init__(opt, **kwargs)
        self.reset()

    def parse(self, text):
        return []  # the base class tokenizes its delimiter; nothing here has one

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

    def context(self, replies: Sequence[str] = ()) -> Context:
        """The context of the next reply, at most `max_len` tokens. replies: that reply where it is known, or its alternatives."""
        return self._context(self.max_len, replies)

    def full_context(self, replies: Sequence[str] = ()) -> Context:
        """The context of the next reply, however long."""
        return self._context(None, replies)

    def _context(self, limit: int | None, replies: Sequence[str]) -> Context:
        dialogue = self.dialogue
        if self.temp_history is not None:  # heard for this turn only
            dialogue = Dialogue(list(dialogue.persona), list(dialogue.turns))
            dialogue.observe(self.temp_history)
        return self._context_of(dialogue, limit, replies)

    def _by_template(self, dialogue: Dialogue, limit: int | None, _replies) -> Context:
        return build_context(dialogue, self.dict.piece, self.dict.bos, limit)

    def get_history_str(self) -> str:
        return self.context().text

    def get_history_vec(self) -> list[int]:
        return list(self.context().ids)

    def get_history_vec_list(self) -> list[list[int]]:
        return [self.get_history_vec()]
