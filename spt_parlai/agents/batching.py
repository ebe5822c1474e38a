"""Messages that carry whole dialogues → one batch whose examples are turns, and back: a turn's metrics → its message.

How the LLM's window is shared between the soft prompt, the context and the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from parlai.core.metrics import AverageMetric, Metric, SumMetric
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spt_parlai.dialogue.packing import pack
from spt_parlai.errors import UsageError


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


DEFAULT_TARGET = 128  # tokens kept free for the target; ConvAI2's longest has about 40
SMALLEST_CONTEXT = 8
UNBOUNDED = 2048  # LLMs without position limit (ALiBi)
_WINDOW_KEYS = ('max_position_embeddings', 'n_positions', 'n_ctx', 'max_seq_len', 'seq_length')


def window_size(config) -> int:
    """The longest sequence the LLM was built for, in tokens."""
    for key in _WINDOW_KEYS:
        value = getattr(config, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return UNBOUNDED


def share_window(
    window: int, prompt_length: int, text_truncate: int | None, label_truncate: int | None, max_new_tokens: int
) -> tuple[int, int]:
    """(longest context, longest target) in tokens; None or -1 asks for as much as fits.

    :raises UsageError: where the soft prompt, the context and the target cannot fit the window together.
    """
    if label_truncate is None or label_truncate < 0:
        label_truncate = max(min(DEFAULT_TARGET, window // 4), 2)
    if label_truncate < 2:
        raise UsageError(
            f'--label-truncate {label_truncate} leaves nothing of a target but its end: give at least 2, or -1.'
        )
    target = max(label_truncate, max_new_tokens)
    room = window - prompt_length - target
    if room < SMALLEST_CONTEXT:
        raise UsageError(
            f"the LLM's window of {window} tokens leaves {max(room, 0)} for the context after --prompt-length {prompt_length} "
            f'and {target} tokens of target (--label-truncate, --max-new-tokens): make these smaller.'
        )
    if text_truncate is None or text_truncate < 0:
        text_truncate = room
    if not SMALLEST_CONTEXT <= text_truncate <= room:
        raise UsageError(
            f"--text-truncate {text_truncate} (or --truncate): the LLM's window of {window} tokens has room for {SMALLEST_CONTEXT} to {room} "
            'tokens of context beside the soft prompt and the target; give -1 for as many as fit.'
        )
    return text_truncate, label_truncate
