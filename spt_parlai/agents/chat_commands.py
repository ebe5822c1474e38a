"""What a person may type in a chat instead of a message: another persona, another prompt, all replies, undo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spt_parlai.agents.persona import persona_sentences

if TYPE_CHECKING:
    from spt_parlai.agents.base import LLMAgent

HELP = """\
/persona                  show the persona of the model
/persona i ski.|i bake.   begin a new dialogue with another
/prompt 2                 reply with prompt 2; /prompt auto: with the one that is selected
/all                      show what every prompt replies to your last message
/undo                     forget your last message and the reply
[DONE]                    begin a new dialogue
[EXIT]                    end the chat"""


def obey(agent: LLMAgent, line: str) -> str | None:
    """Obey a line that a person types in a chat with `agent`.

    :return: what to print, or None if the line is a message: one that does not begin with `/`.
    """
    name, _, argument = line.strip().partition(' ')
    commands = {'/persona': _persona, '/prompt': _prompt, '/all': _all, '/undo': _undo, '/help': lambda *_: HELP}
    if not name.startswith('/'):
        return None
    if name not in commands:
        return f'There is no command {name}; /help lists those that there are.'
    return commands[name](agent, argument.strip())


def _persona(agent: LLMAgent, sentences: str) -> str:
    if sentences:
        agent.history.given_persona = persona_sentences(sentences.split('|'))
        agent.reset()
    shown = '\n'.join(f'    {sentence}' for sentence in agent.history.dialogue.persona or ['(none)'])
    return f'{shown}\nA new dialogue begins.' if sentences else shown


def _prompt(agent: LLMAgent, number: str) -> str:
    if (K := _num_prompts(agent)) < 2:
        return f'{agent.id} has no prompts to choose from.'
    if number not in ('', 'auto', *map(str, range(K))):
        return f'/prompt {number}: give a number from 0 to {K - 1}, or auto.'
    model = agent.bare_model
    if number:
        model.force_prompt = -1 if number == 'auto' else int(number)
    return f'Prompt {model.force_prompt} replies.' if model.force_prompt >= 0 else 'The retriever selects the prompt.'


def _all(agent: LLMAgent, _: str) -> str:
    if _num_prompts(agent) < 2:
        return f'{agent.id} has no prompts to choose from.'
    if not agent.observation:
        return 'There is no message yet to reply to.'
    (found,) = agent.replies_of_all_prompts([agent.observation])
    shares = shares_of(found['scores'])
    return '\n'.join(
        f'{"*" if k == found["selected"] else " "} prompt {k}, {share:4.0%}: {reply}'
        for k, (share, reply) in enumerate(zip(shares, found['replies'], strict=True))
    )


def _undo(agent: LLMAgent, _: str) -> str:
    turns = agent.history.dialogue.turns
    messages = [i for i, turn in enumerate(turns) if not turn.own]
    if not messages:
        return 'There is nothing to undo.'
    message = turns[messages[-1]].text
    del turns[messages[-1] :]
    agent.observation = None
    return f'Forgotten: "{message}" and the reply.'


def _num_prompts(agent: LLMAgent) -> int:
    """K where prompts can be asked for one by one, otherwise 0."""
    return agent.bare_model.soft_prompts.num_prompts if hasattr(agent, 'replies_of_all_prompts') else 0


def shares_of(scores: Sequence[float]) -> list[float]:
    """The scores of a context (eq. 1) as shares of their sum; equal shares if all are 0."""
    total = sum(scores)
    return [score / total if total else 1 / len(scores) for score in scores]


class PromptScores(tuple):
    """The K scores of a context, which ParlAI's displays show as shares of their sum."""

    def __str__(self) -> str:
        return ' '.join(f'{share:.0%}' for share in shares_of(self))
