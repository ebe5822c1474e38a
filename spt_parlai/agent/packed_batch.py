"""Messages that carry whole dialogues → one batch whose examples are turns, and back: a turn's metrics → its message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from parlai.core.metrics import AverageMetric, Metric, SumMetric
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spt_parlai.dialogue.whole_dialogue import pack


class Turn(NamedTuple):
    """One example of a dialogue. context, target: token ids, the target's ending in EOS; text, persona: as the contrast may
    compare them; context_length, target_length: in tokens before truncation; scored: token ids that the retriever looks at, if
    these are not the context's."""

    context: list[int]
    target: list[int]
    text: str
    persona: str
    context_length: int
    target_length: int
    scored: tuple[int, ...] | None = None


def pack_batch(batch, dialogues: Sequence[Sequence[Turn]], padding: int) -> None:
    """Make `batch` one of turns, in place.

    text_vec int64 [R, T]: the rows, see `pack`; label_vec int64 [B, U]; row, context_length int64 [B]: where each turn's
    context ends; message: whose each turn is; scored_vec int64 [B, S], where turns have such; batchsize: B.
    """
    rows, row, lengths, message = [], [], [], []
    for i, turns in enumerate(dialogues):
        packed = pack([t.context for t in turns], [t.target for t in turns])
        row += [len(rows) + r for r in packed.row]
        rows += packed.contexts
        lengths += packed.context_length
        message += [i] * len(turns)
    turns = [turn for dialogue in dialogues for turn in dialogue]
    batch['text_vec'] = padded(rows, padding)
    batch['label_vec'] = padded([t.target for t in turns], padding)
    batch['row'], batch['context_length'] = torch.tensor(row), torch.tensor(lengths)
    batch['message'] = message
    if turns[0].scored is not None:
        batch['scored_vec'] = padded([t.scored for t in turns], padding)
    batch['batchsize'] = len(turns)


def padded(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding)


def per_message(values: Sequence[Metric], message: Sequence[int]) -> list[Metric]:
    """Metrics of turns, added up to one of each message."""
    total: list[Metric | None] = [None] * (message[-1] + 1)
    for i, value in zip(message, values, strict=True):
        total[i] = value if total[i] is None else total[i] + value
    return total


def turn_counts(dialogues: Sequence[Sequence[Turn]]) -> dict[str, list[Metric]]:
    """What ParlAI counts by message, by turn: lengths and truncation, and the turns beyond the one that it counts itself."""

    def average(values):
        return [AverageMetric(sum(values(t) for t in turns), len(turns)) for turns in dialogues]

    return {
        'exs': [SumMetric(len(turns) - 1) for turns in dialogues],
        'clen': average(lambda t: t.context_length),
        'ctrunc': average(lambda t: t.context_length > len(t.context)),
        'ctrunclen': average(lambda t: t.context_length - len(t.context)),
        'llen': average(lambda t: t.target_length),
        'ltrunc': average(lambda t: t.target_length > len(t.target)),
        'ltrunclen': average(lambda t: t.target_length - len(t.target)),
    }
