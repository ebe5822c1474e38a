"""An episode that is evaluated: its turns are known at the first one, and so are the predictions of them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

EPISODE = 'episode'  # an attribute of a teacher's message, which no log shows, and a field of what the agent observes


class Episode:
    """The turns of an episode, shared by the messages that tell it, and what was predicted for them.

    turns: a {'text': …, 'labels': […]} for each message; predictions: what `agents.look_ahead` keeps;
    read: whether it has looked.
    """

    def __init__(self, messages: Iterable[Mapping]):
        self.turns = [{'text': m.get('text'), 'labels': m.get('labels') or m.get('eval_labels')} for m in messages]
        self.predictions: dict[Any, Any] = {}
        self.read = False

    def __deepcopy__(self, memo) -> Episode:
        return self
