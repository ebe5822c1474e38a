"""A dialogue as one causal sequence: every turn's target from one pass over persona, Q1, R1, Q2, R2 …

The mutator turns an episode into one message that carries all its turns; `pack` joins their contexts into as few rows as
possible. A row is exact by construction: a turn joins the row before it only if its context, token for token, begins with
that row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from parlai.core.message import Message
from parlai.core.mutators import EpisodeMutator, register_mutator
from parlai.utils.data import DatatypeHelper

MUTATOR = 'whole_dialogue'
FIELD = 'whole_dialogue'  # of the message: a list of {'text': …, 'labels': […]}, a dictionary a turn


def packs(opt) -> bool:
    """Are this run's episodes packed? In training alone (`training_loop`, set by spt_parlai.training.resume), and where a turn's history
    does not depend on the model's replies."""
    return bool(
        opt.get('training_loop')
        and opt.get('dialogue_packing')
        and MUTATOR in (opt.get('mutators') or '').split('+')
        and DatatypeHelper.is_training(opt.get('datatype', 'train'))
        and opt.get('use_reply', 'label') != 'model'
    )


@register_mutator(MUTATOR)
class WholeDialogue(EpisodeMutator):
    """An episode of a training fold → one message with all its turns; any other episode stays as it is."""

    def episode_mutation(self, episode: list[Message]) -> list[Message]:
        if not packs(self.opt) or not any(message.get('labels') for message in episode):
            return episode
        message = episode[0].copy()
        for name in ('label_candidates', 'eval_labels'):
            message.pop(name, None)
        message.force_set('labels', next(m['labels'] for m in episode if m.get('labels')))
        message.force_set(FIELD, [{'text': m.get('text'), 'labels': m.get('labels')} for m in episode])
        return [message]


class Packed(NamedTuple):
    """R rows of B turns. contexts: R × token ids, each row's last context; row, context_length: of each turn."""

    contexts: list[Sequence[int]]
    row: list[int]
    context_length: list[int]


def pack(contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> Packed:
    """Turns in their order, each a context and a target (ending in EOS), as token ids → rows.

    A turn whose context does not begin with the row so far (older turns were cut, a label is not in the history) begins a
    row of its own.
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
