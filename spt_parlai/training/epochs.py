"""One epoch is one pass over the data, also where a message is a whole dialogue."""

from __future__ import annotations

from spt_parlai.dialogue.whole_dialogue import packs


def count_packed_epochs(world, opt) -> None:
    """ParlAI divides the messages it has seen by the number of examples (turns); here they are divided by the dialogues."""
    if not packs(opt):
        return
    turns, dialogues = world.num_examples(), world.num_episodes()
    if not turns or not dialogues:
        return  # a teacher that does not know its size: ParlAI counts its epochs by itself
    by_turns = world.get_total_epochs
    world.get_total_epochs = lambda: by_turns() * turns / dialogues
