"""A dialogue as an instruction to an LLM that was not trained for it: as one text, or as the messages of a chat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from spt_parlai.dialogue.messages import Dialogue, Turn
from spt_parlai.dialogue.template import Context, Tokenize, build_context, fitting, past_dialogue

INSTRUCTION = (
    'You are chatting with someone. Say what you would say next, in one or two short sentences; if you are given a persona, '
    'it is who you are.'
)
EXAMPLE = 'example:'
BEGIN = 'Begin the conversation.'  # what the agent hears where its partner has not spoken: a chat begins with a user
END_OF_TURN = ('Q:', 'R:', '\n')  # where an LLM that goes on by itself has begun another turn

Message = dict[str, str]


class Instruction(NamedTuple):
    """text: what is asked; examples: whole dialogues, shown before the one at hand."""

    text: str = INSTRUCTION
    examples: Sequence[Dialogue] = ()


def cut_to_fit(example: Dialogue, most: int, length: Callable[[Dialogue], int]) -> Dialogue | None:
    """The example without its last turns and then without its persona's last sentences, so that it ends with an own turn and
    `length` of it is at most `most`; None where not even one own turn without a persona is so short."""
    ends = [n for n, turn in enumerate(example.turns, 1) if turn.own]
    whole = len(example.persona)
    shorter_and_shorter = [(end, whole) for end in reversed(ends)] + [
        (ends[0], n) for n in reversed(range(whole)) if ends
    ]
    for turns, sentences in shorter_and_shorter:
        shown = Dialogue(example.persona[:sentences], example.turns[:turns])
        if length(shown) <= most:
            return shown
    return None


# ---- one text, for an LLM that continues texts ------------------------------------------------------------


def instructed_context(
    dialogue: Dialogue, instruction: Instruction, tokenize: Tokenize, bos: int | None, limit: int | None
) -> Context:
    """`{instruction} example: {dialogue} … {context}`: the method's own template, after an instruction and examples.

    The examples give way first, the last one of all, then the oldest turns; the instruction stays.
    """
    before = list(tokenize(instruction.text, True))
    examples = [
        [i for piece in past_dialogue(example, EXAMPLE, tokenize) for i in piece] for example in instruction.examples
    ]
    length = build_context(dialogue, tokenize, bos, None, before).length
    shown = [i for example in examples for i in example] if limit is None else fitting(examples, limit - length)
    context = build_context(dialogue, tokenize, bos, limit, before + shown)
    return Context(context.ids, context.text, length + sum(map(len, examples)))


def first_turn_of(text: str) -> str:
    """A generated text up to where the LLM has begun another turn."""
    for mark in END_OF_TURN:
        text = text.partition(mark)[0]
    return text.strip()


# ---- messages, for an LLM that was trained to chat ----------------------------------------------------------


def chat_messages(dialogue: Dialogue, instruction: Instruction) -> list[Message]:
    """System: instruction, examples, persona; then the turns, the partner's as the user's and the agent's own as the assistant's."""
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
    """The system's message as the beginning of the first user's, for chats that know no system."""
    system, user, *rest = messages
    return [{'role': 'user', 'content': f'{system["content"]}\n\n{user["content"]}'}, *rest]


def ever_shorter(dialogue: Dialogue, instruction: Instruction) -> Iterator[tuple[Dialogue, Instruction]]:
    """What is shown, and then less and less of it: examples go first, then the oldest turns, then the beginning of the newest
    and the end of the persona, half by half."""
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
