"""Persona and turns → text, token pieces and a context that fits the window.

Template (section 4.1): `given persona: {p1} {p2} …; context: Q: {h1} R: {m1} … Q: {hn} R:`, then the target.
Each piece is tokenized by itself, so that the context of a turn is, token for token, a prefix of the next
turn's context as long as nothing is truncated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spt_parlai.dialogue.messages import Dialogue, Turn

QUESTION, REPLY, NO_PERSONA = 'Q:', 'R:', 'context:'

Tokenize = Callable[[str, bool], Sequence[int]]
"""(text of one piece, whether it opens the context) → token ids, without special tokens."""


@dataclass(frozen=True)
class Context:
    """A rendered context. ids: token ids, BOS first if there is one; text: the dialogue's rendering, for text similarity;
    length: how many tokens it had before truncation; scored: what the retriever looks at, if that is not `ids`."""

    ids: tuple[int, ...]
    text: str
    length: int
    scored: tuple[int, ...] | None = None


def persona_clause(persona: Sequence[str]) -> str:
    """The opening clause; a dialogue without persona leaves it out."""
    return f'given persona: {" ".join(persona)}; {NO_PERSONA}' if persona else NO_PERSONA


def render(dialogue: Dialogue) -> str:
    """The whole context as text, ending in the `R:` that the target follows."""
    turns = [f'{REPLY if t.own else QUESTION} {t.text}' for t in dialogue.turns]
    return ' '.join([persona_clause(dialogue.persona), *turns, REPLY])


def turn_pieces(turn: Turn, tokenize: Tokenize) -> list[int]:
    """An own turn is its `R:` and its text apart, exactly as they were when it was the target."""
    if turn.own:
        return [*tokenize(REPLY, False), *tokenize(turn.text, False)]
    return [*tokenize(f'{QUESTION} {turn.text}', False)]


def past_dialogue(dialogue: Dialogue, marker: str, tokenize: Tokenize, opens: bool = False) -> list[list[int]]:
    """Another dialogue, whole, as pieces of the text before a context."""
    head = tokenize(f'{marker} {persona_clause(dialogue.persona)}', opens)
    return [list(head), *(turn_pieces(t, tokenize) for t in dialogue.turns)]


def fitting(pieces: Sequence[Sequence[int]], room: int) -> list[int]:
    """The first of these pieces, as many as there is room for."""
    kept: list[int] = []
    for piece in pieces:
        if len(kept) + len(piece) > room:
            break
        kept += piece
    return kept


def build_context(
    dialogue: Dialogue, tokenize: Tokenize, bos: int | None, limit: int | None, before: Sequence[int] = ()
) -> Context:
    """Tokenize a dialogue into at most `limit` tokens (None: however many there are), which begin with BOS and `before`.

    Whole oldest turns go first. If the newest turn alone is too long it keeps its marker and its end; a persona
    that alone is too long keeps its beginning. Where both are too long each keeps at least half of the room.
    """
    first = [*([bos] if bos is not None else []), *before]
    head = list(tokenize(persona_clause(dialogue.persona), not before))
    last = list(tokenize(REPLY, False))
    pieces = [turn_pieces(t, tokenize) for t in dialogue.turns]
    length = len(first) + len(head) + sum(map(len, pieces)) + len(last)

    room = (length if limit is None else limit) - len(first) - len(last)  # for the head and the turns
    newest = len(pieces[-1]) if pieces else 0
    head = _cut_head(head, max(room - newest, (room + 1) // 2), tokenize)
    room -= len(head)
    kept = 0
    while kept < len(pieces) and sum(map(len, pieces[-kept - 1 :])) <= room:
        kept += 1
    if kept:
        turns = [i for piece in pieces[-kept:] for i in piece]
    elif pieces:
        kept, turns = 1, _keep_end(dialogue.turns[-1], pieces[-1], room, tokenize)
    else:
        turns = []
    text = render(Dialogue(dialogue.persona, dialogue.turns[len(pieces) - kept :]))
    return Context(tuple(first + head + turns + last), text, length)


def _cut_head(head: list[int], room: int, tokenize: Tokenize) -> list[int]:
    """Keep a persona clause's beginning, and close it with `context:` where there is room for that."""
    if len(head) <= room:
        return head
    close = list(tokenize(NO_PERSONA, False))
    return head[: room - len(close)] + close if room > len(close) else head[:room]


def _keep_end(turn: Turn, piece: list[int], room: int, tokenize: Tokenize) -> list[int]:
    marker = list(tokenize(REPLY if turn.own else QUESTION, False))
    if room <= len(marker):
        return piece[len(piece) - room :]
    return marker + piece[len(piece) - room + len(marker) :]
