"""Whole dialogues of a task's train fold, read through its ParlAI teacher: for retrieval and as examples for an LLM."""

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
    """Set `--training-task` to the task of this run, unless it is given or the model file holds it.

    :raises UsageError: if the task has no training set, as in a chat without a model file.
    """
    if not opt.get('training_task'):
        opt['training_task'] = opt.get('task')
    if opt['training_task'] in NO_TRAINING_SET:
        raise UsageError(
            '--training-task is not given, and a chat has no training examples: name the task from whose train fold '
            'they come.'
        )


def training_dialogues(opt) -> list[Dialogue]:
    """All dialogues of the train fold of `--training-task`, in the order of the data; own turns are the labels.

    :raises UsageError: if the fold holds none.
    """
    data = {
        **opt,
        'task': opt['training_task'],
        'datatype': 'train:ordered',
        'batchsize': 1,
        'num_workers': 0,
        'mutators': '+'.join(name for name in (opt.get('mutators') or '').split('+') if name != MUTATOR),
    }
    dialogues = [dialogue for teacher in create_task_agent_from_taskname(data) for dialogue in _dialogues_of(teacher)]
    if not dialogues:
        raise UsageError(
            f"--training-task {opt['training_task']}: its train fold holds no dialogue; check the task's files."
        )
    return dialogues


def _dialogues_of(teacher) -> Iterator[Dialogue]:
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
    """Whether the dialogue contains these utterances in this order, by either speaker and with others between them."""
    said = iter(turn.text for turn in dialogue.turns)
    return all(text in said for text in texts)  # each `in` continues where the previous one stopped


def instruction_of(opt) -> Instruction:
    """The beginning of every query: `--instruction`, and `--shots` dialogues of the train fold, drawn with `--seed`.

    :raises UsageError: if the train fold has fewer dialogues.
    """
    if not opt['shots']:
        return Instruction(opt['instruction'])
    settle_training_task(opt)
    dialogues = training_dialogues(opt)
    if opt['shots'] > len(dialogues):
        raise UsageError(
            f'--shots {opt["shots"]}: the train fold of {opt["training_task"]} has {len(dialogues)} dialogues; give at '
            'most this number.'
        )
    return Instruction(opt['instruction'], random.Random(opt.get('seed') or 0).sample(dialogues, opt['shots']))
