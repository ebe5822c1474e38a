"""The method's template: from persona and turns to a context that fits the LLM's window.

Template (section 4.1): `given persona: {p1} {p2} …; context: Q: {h1} R: {m1} … Q: {hn} R:`, then the target.
Each piece is tokenized by itself. As long as nothing is truncated, the context of a turn and its target are therefore,
token for token, the beginning of the next turn's context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spt_parlai.dialogue.messages import Dialogue, Turn

QUESTION, REPLY, NO_PERSONA = 'Q:', 'R:', 'context:'

Tokenize = Callable[[str, bool], Sequence[int]]
"""Tokenizes one piece, without special tokens: (text, whether it begins the context) → token ids."""


@dataclass(frozen=True)
class Context:
    """A rendered context.

    :param ids: token ids, which begin with BOS if the tokenizer has one.
    :param text: the dialogue as text, for text similarity.
    :param length: number of tokens before truncation.
    :param scored: token ids that the retriever scores, if these are not `ids`.
    """

    ids: tuple[int, ...]
    text: str
    length: int
    scored: tuple[int, ...] | None = None


def persona_clause(persona: Sequence[str]) -> str:
    """The text before the turns, which mentions a persona only if there is one."""
    return f'given persona: {" ".join(persona)}; {NO_PERSONA}' if persona else NO_PERSONA


def render(dialogue: Dialogue) -> str:
    """The whole context as text. It ends with the `R:` before the target."""
    turns = [f'{REPLY if t.own else QUESTION} {t.text}' for t in dialogue.turns]
    return ' '.join([persona_clause(dialogue.persona), *turns, REPLY])


def turn_pieces(turn: Turn, tokenize: Tokenize) -> list[int]:
    """Token ids of one turn. The text of an own turn is tokenized apart from its `R:`, as when it was the target."""
    if turn.own:
        return [*tokenize(REPLY, False), *tokenize(turn.text, False)]
    return [*tokenize(f'{QUESTION} {turn.text}', False)]


def past_dialogue(dialogue: Dialogue, marker: str, tokenize: Tokenize, opens: bool = False) -> list[list[int]]:
    """A whole other dialogue as pieces of text before a context: the marker with the persona, then each turn."""
    head = tokenize(f'{marker} {persona_clause(dialogue.persona)}', opens)
    return [list(head), *(turn_pieces(t, tokenize) for t in dialogue.turns)]


def fitting(pieces: Sequence[Sequence[int]], room: int) -> list[int]:
    """The token ids of the first pieces, as many as fit into `room` tokens."""
    kept: list[int] = []
    for piece in pieces:
        if len(kept) + len(piece) > room:
            break
        kept += piece
    return kept


def build_context(
    dialogue: Dialogue, tokenize: Tokenize, bos: int | None, limit: int | None, before: Sequence[int] = ()
) -> Context:
    """Tokenize a dialogue into at most `limit` tokens, or any number if that is None. They begin with BOS and `before`.

    Truncation removes whole turns, the oldest first. If the newest turn alone is too long, its marker and its end stay;
    if the persona alone is too long, its beginning stays. If both are too long, each keeps at least half of the room.
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
    """Keep the beginning of a persona clause, closed with `context:` if there is room for it."""
    if len(head) <= room:
        return head
    close = list(tokenize(NO_PERSONA, False))
    return head[: room - len(close)] + close if room > len(close) else head[:room]


def _keep_end(turn: Turn, piece: list[int], room: int, tokenize: Tokenize) -> list[int]:
    """Keep the marker and the end of a turn."""
    marker = list(tokenize(REPLY if turn.own else QUESTION, False))
    if room <= len(marker):
        return piece[len(piece) - room :]
    return marker + piece[len(piece) - room + len(marker) :]
