"""The agent's persona in interactive use: given, read from a file or drawn, and shown at the start of the chat."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from spt_parlai.dialogue.messages import OWN_PERSONA, clean, personas_of
from spt_parlai.errors import UsageError
from spt_parlai.text_files import read_lines

TASKS_WITHOUT_PERSONA = ('interactive', 'self_chat', None)  # ParlAI's plain chats; other tasks send a persona
SAMPLE = Path(__file__).parent.parent / 'tasks' / 'sample' / 'train.txt'


def persona_of_chat(opt, name: str) -> list[str]:
    """Return the persona that an agent has before the first message of a chat; in ParlAI's chats, print it too.

    Outside of chats there is none, but code that builds an agent, without a script, may give one.

    :param name: the agent's name.
    :raises UsageError: if `--persona-file` cannot be used.
    """
    if 'interactive_mode' not in opt:  # every script has this option
        given = opt.get('override') or {}
        return chosen_persona(opt) or [] if {'persona', 'persona_file'} & set(given) else []
    if not opt['interactive_mode']:
        return []
    persona = chosen_persona(opt)
    task = (opt.get('override') or {}).get('task')  # opt['task'] may be the task that the model was trained on
    if persona is None and task in TASKS_WITHOUT_PERSONA:
        persona = draw_persona()
    if 'num_self_chats' not in opt:  # where both speakers have this name; see `parlai_hooks.chat`
        announce(name, persona or [])
    return persona or []


def chosen_persona(opt) -> list[str] | None:
    """The sentences of --persona or --persona-file, or None if neither was given; this command's before the model's."""
    given = opt.get('override') or {}
    if given.get('persona') is not None and not given.get('persona_file'):
        return persona_sentences(given['persona'].split('|'))
    if opt.get('persona_file'):
        return read_persona_file(opt['persona_file'])
    if opt.get('persona') is not None:
        return persona_sentences(opt['persona'].split('|'))
    return None


def persona_sentences(lines: Iterable[str]) -> list[str]:
    """Sentences as they were typed or read, with or without `your persona:` before them."""
    cleaned = (clean(line.strip().removeprefix(OWN_PERSONA)) for line in lines)
    return [sentence for sentence in cleaned if sentence]


def read_persona_file(path: str) -> list[str]:
    """Read a persona with one sentence per line, which may begin with `your persona:`.

    :raises UsageError: if the file cannot be read or contains no sentence.
    """
    try:
        lines = read_lines(path)
    except ValueError as error:
        raise UsageError(
            f'--persona-file {path} cannot be read ({error}): give a text file with one sentence of the persona per '
            'line.'
        ) from error
    sentences = persona_sentences(lines)
    if not sentences:
        raise UsageError(f'--persona-file {path} is empty: write one sentence of the persona per line.')
    return sentences


@lru_cache(maxsize=1)
def sample_personas() -> tuple[tuple[str, ...], ...]:
    """The personas of the sample task."""
    return tuple(map(tuple, personas_of(read_lines(SAMPLE))))


def draw_persona() -> list[str]:
    """A random persona of the sample task."""
    return list(random.choice(sample_personas()))


def announce(name: str, persona: list[str]) -> None:
    """Print the persona under the agent's name."""
    print(f'[ {name} has the persona ]')
    for sentence in persona or ['(none)']:
        print(f'    {sentence}')
