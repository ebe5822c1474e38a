"""What an LLM thinks before it answers, which is no part of its reply."""

from __future__ import annotations

import re

OPEN, CLOSE = '<think>', '</think>'
_BLOCKS = re.compile(rf'(\s*{OPEN}.*?({CLOSE}|\Z))+\s*', re.DOTALL)


def without_thoughts(text: str, opened: bool = False) -> str:
    """A reply without the think blocks at its beginning. One that is not closed reaches to the end of the text.

    :param opened: whether the prompt has opened a block. One that is closed in the text was opened there in any case.
    """
    thoughts, closed, _ = text.partition(CLOSE)
    if OPEN not in thoughts and (opened or closed):
        text = OPEN + text
    found = _BLOCKS.match(text)
    return text[found.end() :] if found else text


def is_thinking(prompt: str) -> bool:
    """Whether a prompt ends inside a think block."""
    return prompt.rfind(OPEN) > prompt.rfind(CLOSE)
