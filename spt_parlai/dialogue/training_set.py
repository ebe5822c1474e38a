"""The dialogues of a task's train fold, as its ParlAI teacher tells them: what is shown to an LLM as an example."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from parlai.core.teachers import create_task_agent_from_taskname

from spt_parlai.dialogue.instruction import Instruction
from spt_parlai.dialogue.messages import Dialogue
from spt_parlai.dialogue.mutator import MUTATOR
from spt_parlai.errors import UsageError

NO_TRAINING_SET = ('interactive', 'interactive_web', 'self_chat', None, '')


def settle_training_task(opt) -> None:
    """`--training-task` is the task of the run that begins here, unless it is given; a model file remembers it.

    :raises UsageError: where there is no such task, as in a chat around no model file.
    """
    if not opt.get('training_task'):
        opt['training_task'] = opt.get('task')
    if opt['training_task'] in NO_TRAINING_SET:
        raise UsageError(
            '--training-task is not given, and a chat has no training examples: name the task whose train fold they are of.'
        )


def training_dialogues(opt) -> list[Dialogue]:
    """Every dialogue of `--training-task`'s train fold, whole and in the data's order, own turns as their labels say."""
    data = {
        **opt,
        'task': opt['training_task'],
        'datatype': 'train:ordered',
        'batchsize': 1,
        'num_workers': 0,
        'mutators': '+'.join(name for name in (opt.get('mutators') or '').split('+') if name != MUTATOR),
    }
    dialogues = [dialogue for teacher in create_task_agent_from_taskname(data) for dialogue in _told_by(teacher)]
    if not dialogues:
        raise UsageError(
            f"--training-task {opt['training_task']}: its train fold holds no dialogue; check the task's files."
        )
    return dialogues


def _told_by(teacher) -> Iterator[Dialogue]:
    for _ in range(teacher.num_episodes()):
        dialogue, done = Dialogue(), False
        while not done:
            message = teacher.act()
            dialogue.observe(message.get('text'))
            labels = message.get('labels') or message.get('eval_labels')
            if labels:
                dialogue.reply(labels[0])
            done = message['episode_done']
        if dialogue.turns:
            yield dialogue


def has_in_order(dialogue: Dialogue, texts: Sequence[str]) -> bool:
    """Are these utterances in the dialogue, in this order, whoever says them and whatever is between them?"""
    said = iter(turn.text for turn in dialogue.turns)
    return all(text in said for text in texts)  # each `in` goes on where the one before it stopped


def instruction_of(opt) -> Instruction:
    """What every query begins with: `--instruction`, and `--shots` dialogues of the train fold, drawn by `--seed`.

    :raises UsageError: where there are not so many.
    """
    if not opt['shots']:
        return Instruction(opt['instruction'])
    settle_training_task(opt)
    dialogues = training_dialogues(opt)
    if opt['shots'] > len(dialogues):
        raise UsageError(
            f'--shots {opt["shots"]}: the train fold of {opt["training_task"]} has {len(dialogues)} dialogues; give at most these.'
        )
    return Instruction(opt['instruction'], random.Random(opt.get('seed') or 0).sample(dialogues, opt['shots']))
