"""The mutator that turns an episode into one message with all its turns, which `packing.py` puts into rows."""

from __future__ import annotations

from parlai.core.message import Message
from parlai.core.mutators import EpisodeMutator, register_mutator
from parlai.utils.data import DatatypeHelper

MUTATOR = 'whole_dialogue'
FIELD = 'whole_dialogue'  # of that message: a list with a {'text': …, 'labels': […]} for each turn


def packs(opt) -> bool:
    """Whether the episodes of this data are packed.

    They are if the options name the mutator, the data is a training fold, and the history does not depend on the
    model's replies. The hook of ParlAI's training loop names the mutator; commands that show or evaluate data do not.
    """
    return bool(
        opt.get('dialogue_packing')
        and MUTATOR in (opt.get('mutators') or '').split('+')
        and DatatypeHelper.is_training(opt.get('datatype', 'train'))
        and opt.get('use_reply', 'label') != 'model'
    )


@register_mutator(MUTATOR)
class WholeDialogue(EpisodeMutator):
    """Turns an episode of a training fold into one message with all its turns; other episodes stay as they are."""

    def episode_mutation(self, episode: list[Message]) -> list[Message]:
        if not packs(self.opt) or not any(message.get('labels') for message in episode):
            return episode
        message = episode[0].copy()
        for name in ('label_candidates', 'eval_labels'):
            message.pop(name, None)
        message.force_set('labels', next(m['labels'] for m in episode if m.get('labels')))
        message.force_set(FIELD, [{'text': m.get('text'), 'labels': m.get('labels')} for m in episode])
        return [message]
