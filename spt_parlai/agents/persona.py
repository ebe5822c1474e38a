"""Personas for interactive use, and what a chat shows of them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from spt_parlai.dialogue.messages import OWN_PERSONA, clean, split_message
from spt_parlai.errors import UsageError

TASKS_WITHOUT_PERSONA = ('interactive', 'self_chat', None)  # ParlAI's bare chat worlds; other worlds send a persona
SAMPLE = Path(__file__).parent.parent / 'tasks' / 'sample' / 'train.txt'


def persona_of_chat(opt, name: str) -> list[str]:
    """The sentences that an agent knows of itself before the first message, in interactive use; it says so. name: the agent's."""
    if not opt.get('interactive_mode'):
        return []
    persona = chosen_persona(opt)
    if (
        persona is None and (opt.get('override') or {}).get('task') in TASKS_WITHOUT_PERSONA
    ):  # 'task' itself is the trained one
        persona = draw_persona()
    announce(name, persona or [])
    return persona or []


def chosen_persona(opt) -> list[str] | None:
    """The persona of --persona or --persona-file as sentences; None where neither was given."""
    if opt.get('persona_file'):
        return read_persona_file(opt['persona_file'])
    if opt.get('persona') is not None:
        return _sentences(opt['persona'].split('|'))
    return None


def _sentences(lines: Iterable[str]) -> list[str]:
    """What was typed or read, with or without `your persona:` before it."""
    cleaned = (clean(line.strip().removeprefix(OWN_PERSONA)) for line in lines)
    return [sentence for sentence in cleaned if sentence]


def read_persona_file(path: str) -> list[str]:
    """One sentence a line; `your persona:` before it is allowed. Raises UsageError for a file without any."""
    try:
        text = Path(path).read_text(encoding='utf-8-sig')
        if '\0' in text:
            raise ValueError('a binary file')
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or 'not UTF-8 text'
        raise UsageError(
            f'--persona-file {path} cannot be read ({reason}): give a text file with one sentence of the persona a line.'
        ) from error
    sentences = _sentences(text.splitlines())
    if not sentences:
        raise UsageError(f'--persona-file {path} is empty: write one sentence of the persona a line.')
    return sentences


@lru_cache(maxsize=1)
def sample_personas() -> tuple[tuple[str, ...], ...]:
    """The personas of the embedded sample task."""
    personas: list[list[str]] = []
    for line in SAMPLE.read_text(encoding='utf-8').splitlines():
        number, _, text = line.partition(' ')
        if number == '1':
            personas.append([])
        personas[-1] += split_message(text)[0]
    return tuple(map(tuple, personas))


def draw_persona() -> list[str]:
    return list(random.choice(sample_personas()))


def announce(name: str, persona: list[str]) -> None:
    """Print whose persona this is."""
    print(f'[ {name} has the persona ]')
    for sentence in persona or ['(none)']:
        print(f'    {sentence}')
