"""From ParlAI messages to the agent's persona and the turns of the dialogue (self-persona setting, section 4.1)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spt_parlai.errors import UsageError, shorten

SILENCE = '__SILENCE__'
OWN_PERSONA = 'your persona:'
PARTNER_PERSONA = "partner's persona:"
_HALF_SURROGATE = re.compile('[\ud800-\udfff]')


@dataclass(frozen=True)
class Turn:
    """One utterance. `own` is true for the agent's side (R:) and false for its partner's (Q:)."""

    text: str
    own: bool


@dataclass
class Dialogue:
    """What is known before the next reply: the agent's own persona, and the turns so far with the oldest first."""

    persona: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    def observe(self, text: str) -> None:
        """Add a message of the partner: its persona lines to the persona, and its other lines as one turn."""
        persona, utterance = split_message(text)
        self.persona += persona
        self._add(utterance, own=False)

    def reply(self, text: str) -> None:
        """Add the agent's own utterance, a label or a generated reply."""
        self._add(clean(text), own=True)

    def keep_newest(self, n: int) -> None:
        """Forget all but the newest n turns, or none if n is negative. The persona always stays."""
        if n >= 0:
            del self.turns[: max(0, len(self.turns) - n)]

    def _add(self, utterance: str, own: bool) -> None:
        if utterance:
            self.turns.append(Turn(utterance, own))


def check_message(message) -> None:
    """Check the types of a message: ParlAI itself would take the label 'yes' for the three labels 'y', 'e' and 's'.

    The text must be a string or None, the labels and candidates lists of strings, and the reward a number.

    :raises UsageError: naming the field.
    """
    if not isinstance(message.get('text'), (str, type(None))):
        raise UsageError(
            f"the text of a message must be a string, not {shorten(message['text'])}; correct the task's data."
        )
    if not isinstance(message.get('reward', 0), (int, float)):
        raise UsageError(
            f"the reward of a message must be a number, not {shorten(message['reward'])}; correct the task's data."
        )
    for name, kind in (('labels', Sequence), ('eval_labels', Sequence), ('label_candidates', Collection)):
        texts = message.get(name, ('',))
        if texts is None and kind is Collection:
            continue
        if (
            not isinstance(texts, kind)
            or isinstance(texts, (str, bytes, Mapping))
            or kind is Sequence
            and not texts
            or not all(isinstance(text, str) for text in texts)
        ):
            raise UsageError(
                f"the {name} of a message must be a list of strings, not {shorten(texts)}; correct the task's data."
            )


def well_formed(value: Any) -> Any:
    """A text, or all texts in a message, list or JSON value, with U+FFFD in place of each half of a surrogate pair.

    JSON that was cut inside an emoji has such halves, and undecodable bytes on a command line become some. They can
    neither be printed nor tokenized. What has none is returned as it is.
    """
    if isinstance(value, str):
        halves = _HALF_SURROGATE.search(value)
        return value.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') if halves else value
    if isinstance(value, dict):
        changed = {key: new for key, old in value.items() if (new := well_formed(old)) is not old}
        return type(value)({**value, **changed}) if changed else value
    if type(value) in (list, tuple, set):
        items = [well_formed(item) for item in value]
        return type(value)(items) if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value


def clean(text: str | None) -> str:
    """Make a text `well_formed`, and reduce white space to single spaces.

    `__SILENCE__`, None and blank text become '', which is no utterance.
    """
    text = ' '.join(well_formed(text or '').split())
    return '' if text == SILENCE else text


def split_message(text: str | None) -> tuple[list[str], str]:
    """Split the lines of a message into (own persona sentences, utterance). The partner's persona is ignored."""
    persona, spoken = [], []
    for line in (text or '').split('\n'):
        line = line.strip()
        if line.startswith(OWN_PERSONA):
            persona.append(clean(line[len(OWN_PERSONA) :]))
        elif not line.startswith(PARTNER_PERSONA):
            spoken.append(clean(line))
    return [p for p in persona if p], ' '.join(s for s in spoken if s)


def personas_of(lines: Iterable[str]) -> list[list[str]]:
    """The speaker's own persona in each dialogue of a file in ConvAI2's format, which has `N text<tab>…` in a line."""
    personas: list[list[str]] = []
    for line in lines:
        number, _, text = line.partition(' ')
        if number == '1':
            personas.append([])
        if personas:
            personas[-1] += split_message(text.partition('\t')[0])[0]
    return personas
