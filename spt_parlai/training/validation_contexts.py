"""The fixed contexts of the validation data that every prompt answers at each validation (`--log-replies`)."""

from __future__ import annotations

from typing import Any, NamedTuple

from parlai.core import worlds
from parlai.core.agents import Agent
from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.tasks.tasks import ids_to_tasks

from spt_parlai.dialogue.messages import split_message
from spt_parlai.dialogue.mutator import MUTATOR


class Context(NamedTuple):
    """A turn of a dialogue. observation: what an agent makes of it, with the turns before it in its history."""

    persona: list[str]
    dialogue: list[str]  # utterances from the partner's first to its last
    label: str
    observation: Any


def read_contexts(opt, agent: Agent, count: int) -> list[Context]:
    """Observe `count` turns: the first of the first dialogue, the second of the second one, and so on.

    They have different lengths then, as far as the dialogues have. Several tasks take turns.
    """
    tasks = ids_to_tasks(opt.get('evaltask') or opt['task']).split(',')
    fold = {**opt, 'datatype': 'valid:stream' if 'stream' in opt['datatype'] else 'valid'}
    if fold.get('mutators') == MUTATOR:  # the training loop's own choice: here every turn is a message
        fold['mutators'] = None
    teachers = [worlds._create_task_agents(Opt({**fold, 'task': task}))[0] for task in tasks]
    contexts = []
    for i in range(count):
        messages = _dialogue(teachers[i % len(teachers)])
        if messages:
            contexts.append(_observed(agent.clone(), messages[: i // len(teachers) + 1]))
    for teacher in teachers:
        teacher.shutdown()
    return contexts


def _dialogue(teacher) -> list[Message]:
    """The messages of the teacher's next dialogue; none where its data is at an end."""
    messages: list[Message] = []
    while not teacher.epoch_done():
        message = teacher.act()
        if message.is_padding() or 'text' not in message:
            break
        messages.append(message)
        if message.get('episode_done'):
            break
    return messages


def _observed(agent: Agent, messages: list[Message]) -> Context:
    persona: list[str] = []
    dialogue: list[str] = []
    for i, message in enumerate(messages):
        told, said = split_message(message['text'])
        label = (message.get('eval_labels') or message.get('labels') or [''])[0]
        persona, dialogue = [*persona, *told], [*dialogue, said]
        observation = agent.observe(message)
        if i + 1 < len(messages):
            agent.self_observe(Message({'text': label, 'episode_done': False}))
            dialogue.append(label)
    return Context(persona, dialogue, label, observation)
