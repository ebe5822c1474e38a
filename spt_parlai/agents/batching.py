"""From observations to a batch: contexts, targets, whole dialogues, and how they share the LLM's window.

One example is one reply to predict. ParlAI makes one example of a message; a message that carries a whole dialogue
holds one example for each of its turns, and a batch with such messages counts turns, not messages.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from parlai.core.metrics import AverageMetric, Metric, SumMetric
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spt_parlai.dialogue.episode import EPISODE
from spt_parlai.dialogue.history import DialogueHistory
from spt_parlai.dialogue.packing import pack
from spt_parlai.errors import UsageError
from spt_parlai.model.independent_rows import longest_independent_row

DEFAULT_TARGET = 128  # tokens kept free for the target; the longest in ConvAI2 has about 40
SMALLEST_CONTEXT = 8  # tokens
UNBOUNDED = 2048  # the window of an LLM without a position limit (ALiBi), in tokens
_WINDOW_KEYS = ('max_position_embeddings', 'n_positions', 'n_ctx', 'max_seq_len', 'seq_length')
_COUNTED_BY_MESSAGE = (  # fields in which ParlAI keeps lengths of contexts and labels, one for each message
    '_context_original_length',
    '_context_truncate_rate',
    '_context_truncated_length',
    '_label_original_length',
    '_label_truncate_rate',
    '_label_truncated_length',
)


# ---- the window ---------------------------------------------------------------------------------------------


def window_size(config) -> int:
    """Return the longest sequence, in tokens, that the LLM was built for and computes as it does without other rows."""
    sizes = (getattr(config, key, None) for key in _WINDOW_KEYS)
    window = next((size for size in sizes if isinstance(size, int) and size > 0), UNBOUNDED)
    return min(window, longest_independent_row(config) or window)


def share_window(
    window: int, prompt_length: int, text_truncate: int | None, label_truncate: int | None, max_new_tokens: int
) -> tuple[int, int]:
    """Return (longest context, longest target) in tokens; None or -1 asks for as much as fits.

    :raises UsageError: if the soft prompt, the context and the target do not fit into the window together.
    """
    if label_truncate is None or label_truncate < 0:
        label_truncate = max(min(DEFAULT_TARGET, window // 4), 2)
    if label_truncate < 2:
        raise UsageError(
            f'--label-truncate {label_truncate} leaves only the end token of a target: give at least 2, or -1.'
        )
    target = max(label_truncate, max_new_tokens)
    room = window - prompt_length - target
    if room < SMALLEST_CONTEXT:
        raise UsageError(
            f"the LLM's window of {window} tokens leaves {max(room, 0)} for the context after --prompt-length "
            f'{prompt_length} and {target} tokens of target (--label-truncate, --max-new-tokens): make these smaller.'
        )
    if text_truncate is None or text_truncate < 0:
        text_truncate = room
    if not SMALLEST_CONTEXT <= text_truncate <= room:
        raise UsageError(
            f"--text-truncate {text_truncate} (or --truncate): the LLM's window of {window} tokens has room for "
            f'{SMALLEST_CONTEXT} to {room} tokens of context beside the soft prompt and the target; give -1 for as '
            'many as fit.'
        )
    return text_truncate, label_truncate


# ---- one example --------------------------------------------------------------------------------------------


class TurnExample(NamedTuple):
    """One reply to predict.

    context, target: token ids, the target's ending in EOS; text, persona: what the contrast compares;
    context_length, target_length: tokens before truncation; scored: the token ids that the retriever reads, if they
    are not the context's.
    """

    context: list[int]
    target: list[int]
    text: str
    persona: str
    context_length: int
    target_length: int
    scored: tuple[int, ...] | None = None


class Batcher:
    """Turns messages into examples, and a batch of messages into a batch of examples.

    :param reply_ids: the text of a reply → its token ids, without the end token.
    :param new_history: makes the history of a dialogue that begins.
    :param end: the id of the token that ends every target.
    :param padding: the id that pads rows, which is negative.
    :param labels_are_said: whether a label becomes part of the dialogue (`--use-reply label`).
    """

    def __init__(
        self,
        reply_ids: Callable[[str], list[int]],
        new_history: Callable[[], DialogueHistory],
        end: int,
        padding: int,
        labels_are_said: bool,
    ):
        self.reply_ids = reply_ids
        self.new_history = new_history
        self.end = end
        self.padding = padding
        self.labels_are_said = labels_are_said

    def target(self, text: str, limit: int | None) -> tuple[list[int], int]:
        """Return a target's token ids, at most `limit`, and its length before truncation.

        The end token stays even if the target is cut, as its loss always counts.
        """
        ids = self.reply_ids(text)
        kept = ids if limit is None else ids[: limit - 1]
        return [*kept, self.end], len(ids) + 1

    def add_context(self, message, history: DialogueHistory, with_full_context: bool) -> None:
        """Write the context of the next reply into the fields of a message that ParlAI and `complete` read.

        :param with_full_context: also write the context without truncation, for `--beam-context-block-ngram`.
        """
        replies = message.get('labels') or message.get('eval_labels') or ()
        context = history.context(replies)
        message.force_set('text_vec', torch.LongTensor(context.ids))
        message.force_set('scored', context.scored)
        message.force_set('full_text', context.text)
        message.force_set('persona_text', ' '.join(history.dialogue.persona))
        message.force_set('full_text_vec', list(history.context(replies, whole=True).ids) if with_full_context else [])
        message.force_set('context_original_length', context.length)
        message.force_set('context_truncate_rate', context.length > len(context.ids))
        message.force_set('context_truncated_length', context.length - len(context.ids))

    def add_turns(self, message, turns: Sequence[dict], limit: int | None) -> None:
        """Write the examples of a whole dialogue into its message."""
        examples = self.examples(turns, limit)
        message.force_set('turns', examples)
        message.force_set('text_vec', torch.LongTensor(examples[-1].context))  # the longest: ParlAI sorts by it
        message.force_set('labels_vec', torch.LongTensor(examples[-1].target))

    def examples(self, turns: Sequence[dict], limit: int | None) -> list[TurnExample]:
        """Make an example of every labelled turn of a whole dialogue.

        Each is exactly the example that ParlAI would make if it told the dialogue message by message.
        """
        history, examples = self.new_history(), []
        for turn in turns:
            history.update_history(turn)
            if not turn['labels']:
                continue
            label = turn['labels'][0] if len(turn['labels']) == 1 else random.choice(turn['labels'])
            context = history.context(turn['labels'])
            target, length = self.target(label, limit)
            persona = ' '.join(history.dialogue.persona)
            examples.append(
                TurnExample(list(context.ids), target, context.text, persona, context.length, length, context.scored)
            )
            if self.labels_are_said:
                history.add_reply(label)
        return examples

    def complete(self, batch, messages: Sequence) -> None:
        """Add to ParlAI's batch of these messages what the model and the losses need.

        texts: what the contrast compares, 'context' and 'persona' → a text for each example; scored_vec int64 [B, S]:
        what the retriever reads, if it does not read the context. If a message holds a whole dialogue, the batch
        becomes one of turns, see `pack_batch`.
        """
        if any('turns' in message for message in messages):
            pack_batch(batch, [message.get('turns') or [_example(message)] for message in messages], self.padding)
            return
        batch['texts'] = {
            'context': [message['full_text'] for message in messages],
            'persona': [message['persona_text'] for message in messages],
        }
        if all(EPISODE in message for message in messages):
            batch['episodes'] = [message[EPISODE] for message in messages]
        if messages[0]['scored'] is not None:
            batch['scored_vec'] = _padded([message['scored'] for message in messages], self.padding)


def _example(message) -> TurnExample:
    return TurnExample(
        message['text_vec'].tolist(),
        message['labels_vec'].tolist(),
        message['full_text'],
        message['persona_text'],
        message['context_original_length'],
        message['label_original_length'],
        message['scored'],
    )


# ---- a batch of turns ---------------------------------------------------------------------------------------


def pack_batch(batch, dialogues: Sequence[Sequence[TurnExample]], padding: int) -> None:
    """Change `batch` in place into a batch of turns.

    text_vec int64 [R, T]: rows of contexts, see `pack`; label_vec int64 [B, U]; row, context_length int64 [B]: where
    the context of each turn ends; message: the number of each turn's message; scored_vec int64 [B, S], if turns have
    one; texts: as in `Batcher.complete`; counts: what ParlAI counts by message, by turn; batchsize: B.
    """
    rows: list[Sequence[int]] = []
    row, lengths, message = [], [], []
    for i, turns in enumerate(dialogues):
        packed = pack([turn.context for turn in turns], [turn.target for turn in turns])
        row += [len(rows) + r for r in packed.row]
        rows += packed.contexts
        lengths += packed.context_length
        message += [i] * len(turns)
    turns = [turn for dialogue in dialogues for turn in dialogue]
    batch['text_vec'] = _padded(rows, padding)
    batch['label_vec'] = _padded([turn.target for turn in turns], padding)
    batch['row'], batch['context_length'] = torch.tensor(row), torch.tensor(lengths)
    batch['message'] = message
    batch['texts'] = {'context': [turn.text for turn in turns], 'persona': [turn.persona for turn in turns]}
    if turns[0].scored is not None:
        batch['scored_vec'] = _padded([turn.scored or () for turn in turns], padding)
    batch['counts'] = turn_counts(dialogues)
    for name in _COUNTED_BY_MESSAGE:
        batch[name] = None
    batch['batchsize'] = len(turns)


def _padded(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding)


def by_message(metrics: dict[str, list[Metric]], message: Sequence[int]) -> dict[str, list[Metric]]:
    """Add metrics of turns up to one metric for each message, by name. message: the number of each turn's message."""
    added: dict[str, list[Metric]] = {}
    for name, values in metrics.items():
        total: dict[int, Metric] = {}
        for i, value in zip(message, values, strict=True):
            total[i] = total[i] + value if i in total else value
        added[name] = list(total.values())
    return added


def turn_counts(dialogues: Sequence[Sequence[TurnExample]]) -> dict[str, list[Metric]]:
    """Return ParlAI's counts by turn: lengths, truncation, and the turns beyond the one that ParlAI counts itself."""

    def average(value: Callable[[TurnExample], float]) -> list[Metric]:
        return [AverageMetric(sum(map(value, turns)), len(turns)) for turns in dialogues]

    return {
        'exs': [SumMetric(len(turns) - 1) for turns in dialogues],
        'clen': average(lambda turn: turn.context_length),
        'ctrunc': average(lambda turn: turn.context_length > len(turn.context)),
        'ctrunclen': average(lambda turn: turn.context_length - len(turn.context)),
        'llen': average(lambda turn: turn.target_length),
        'ltrunc': average(lambda turn: turn.target_length > len(turn.target)),
        'ltrunclen': average(lambda turn: turn.target_length - len(turn.target)),
    }
