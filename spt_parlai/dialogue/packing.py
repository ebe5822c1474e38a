"""The turns of a dialogue in shared rows: one pass over persona, Q1, R1, Q2, R2 … reads every turn's target.

The mutator turns an episode into one message that carries all its turns (`mutator.py`); `pack` joins their contexts
into as few rows as possible. Packing is exact: a turn joins a row only if its context begins with that row, token for
token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Packed(NamedTuple):
    """B turns in R rows.

    :param contexts: token ids of each row's longest context; R of them.
    :param row: the row of each turn; B of them.
    :param context_length: tokens in each turn's context, which is as many first tokens of its row; B of them.
    """

    contexts: list[Sequence[int]]
    row: list[int]
    context_length: list[int]


def pack(contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> Packed:
    """Pack the turns of one dialogue into rows.

    A turn begins a new row where its context does not begin with the row so far: older turns were truncated, or the
    label is not part of the history.

    :param contexts: token ids of each turn's context, in the order of the dialogue.
    :param targets: token ids of each turn's target, which end in EOS.
    """
    rows: list[Sequence[int]] = []
    row: list[int] = []
    before: Sequence[int] | None = None  # the row so far: the last context and its target, without EOS
    for context, target in zip(contexts, targets, strict=True):
        if before is not None and context[: len(before)] == before:
            rows[-1] = context
        else:
            rows.append(context)
        row.append(len(rows) - 1)
        before = [*context, *target[:-1]]
    return Packed(rows, row, [len(context) for context in contexts])
