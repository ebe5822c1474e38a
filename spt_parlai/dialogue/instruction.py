"""A dialogue as a query to an LLM that was not trained on it: as one text, or as the messages of a chat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from spt_parlai.dialogue.messages import Dialogue, Turn
from spt_parlai.dialogue.template import Context, Tokenize, build_context, fitting, past_dialogue

INSTRUCTION = (
    'You are chatting with someone. Say what you would say next, in one or two short sentences; if you are given a '
    'persona, it is who you are.'
)
EXAMPLE = 'example:'
BEGIN = 'Begin the conversation.'  # the partner's message if the agent speaks first, because a chat begins with a user
END_OF_TURN = ('Q:', 'R:', '\n')  # where an LLM has gone on to another turn

Message = dict[str, str]


class Instruction(NamedTuple):
    """What comes before the dialogue: `text` says what to do, and `examples` are other whole dialogues."""

    text: str = INSTRUCTION
    examples: Sequence[Dialogue] = ()


def cut_to_fit(example: Dialogue, most: int, length: Callable[[Dialogue], int]) -> Dialogue | None:
    """The longest beginning of an example that ends with an own turn and whose `length` is at most `most`.

    The last turns are left out first, then the last sentences of the persona. None if even the shortest is too long.
    """
    ends = [n for n, turn in enumerate(example.turns, 1) if turn.own]
    whole = len(example.persona)
    beginnings = [(end, whole) for end in reversed(ends)] + [(ends[0], n) for n in reversed(range(whole)) if ends]
    for turns, sentences in beginnings:
        shown = Dialogue(example.persona[:sentences], example.turns[:turns])
        if length(shown) <= most:
            return shown
    return None


# ---- one text, for an LLM that continues texts ------------------------------------------------------------


def instructed_context(
    dialogue: Dialogue, instruction: Instruction, tokenize: Tokenize, bos: int | None, limit: int | None
) -> Context:
    """The method's template after an instruction and examples: `{instruction} example: {dialogue} … {context}`.

    Truncation removes the examples first, beginning with the last, and then the oldest turns. The instruction stays.
    """
    before = list(tokenize(instruction.text, True))
    examples = [
        [i for piece in past_dialogue(example, EXAMPLE, tokenize) for i in piece] for example in instruction.examples
    ]
    length = build_context(dialogue, tokenize, bos, None, before).length
    shown = [i for example in examples for i in example] if limit is None else fitting(examples, limit - length)
    context = build_context(dialogue, tokenize, bos, limit, before + shown)
    return Context(context.ids, context.text, length + sum(map(len, examples)))


def first_turn_of(text: str, marks: Sequence[str] = END_OF_TURN) -> str:
    """The generated text before the point where the LLM has gone on to another turn."""
    text = text.lstrip()
    for mark in marks:
        text = text.partition(mark)[0]
    return text.strip()


def is_past_first_turn(text: str, marks: Sequence[str] = END_OF_TURN) -> bool:
    """Whether the LLM has gone on to another turn. White space before the first word is part of no turn."""
    return any(mark in text.lstrip() for mark in marks)


# ---- messages, for an LLM that was trained to chat ----------------------------------------------------------


def chat_messages(dialogue: Dialogue, instruction: Instruction) -> list[Message]:
    """The messages of a chat: the system's with instruction, examples and persona, then one for each turn.

    The partner is the user and the agent is the assistant; turns of the same speaker in a row become one message.
    """
    messages = [{'role': 'system', 'content': '\n\n'.join(_system(dialogue, instruction))}]
    if not dialogue.turns or dialogue.turns[0].own:
        messages.append({'role': 'user', 'content': BEGIN})
    for turn in dialogue.turns:
        role = 'assistant' if turn.own else 'user'
        if messages[-1]['role'] == role:
            messages[-1]['content'] += f' {turn.text}'
        else:
            messages.append({'role': role, 'content': turn.text})
    return messages


def _system(dialogue: Dialogue, instruction: Instruction) -> Iterator[str]:
    yield instruction.text
    for example in instruction.examples:
        yield '\n'.join(
            [
                'Example of a conversation:',
                *_persona(example),
                *(f'{"You" if turn.own else "Partner"}: {turn.text}' for turn in example.turns),
            ]
        )
    yield from _persona(dialogue)


def _persona(dialogue: Dialogue) -> list[str]:
    return [f'Your persona: {" ".join(dialogue.persona)}'] if dialogue.persona else []


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The messages for a chat template without a system role: the first user message begins with the system's."""
    system, user, *rest = messages
    return [{'role': 'user', 'content': f'{system["content"]}\n\n{user["content"]}'}, *rest]


def ever_shorter(dialogue: Dialogue, instruction: Instruction) -> Iterator[tuple[Dialogue, Instruction]]:
    """Yield the dialogue and its instruction, and then less and less of them, to find the longest that fits a window.

    The examples go first and then the oldest turns. After that the newest turn loses its beginning and the persona its
    end, half by half.
    """
    for shown in range(len(instruction.examples), 0, -1):
        yield dialogue, instruction._replace(examples=instruction.examples[:shown])
    instruction = instruction._replace(examples=())
    persona, turns = list(dialogue.persona), list(dialogue.turns)
    yield dialogue, instruction
    while len(turns) > 1:
        del turns[0]
        yield Dialogue(persona, list(turns)), instruction
    words = turns[0].text.split() if turns else []
    while len(words) > 1 or persona:
        words, persona = words[(len(words) + 1) // 2 :] or words[-1:], persona[: len(persona) // 2]
        yield Dialogue(persona, [Turn(' '.join(words), t.own) for t in turns]), instruction
