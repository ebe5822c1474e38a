"""The mutator that turns an episode into one message with all its turns; `packing.py` puts these into rows."""

from __future__ import annotations

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
