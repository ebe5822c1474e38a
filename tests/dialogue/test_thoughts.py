"""What an LLM thinks is cut from the beginning of its reply, and nothing else is."""

import pytest

from spt_parlai.dialogue.thoughts import is_thinking, without_thoughts


@pytest.mark.parametrize(
    ('text', 'reply'),
    [
        ('hi there', 'hi there'),
        ('<think>\nhm\n</think>\n\nhi', 'hi'),
        ('\n<think>hm</think>hi', 'hi'),
        ('<think>a</think> <think>b</think> hi', 'hi'),
        ('hm\n</think>\n\nhi', 'hi'),  # the prompt has opened it
        ('<think>cut off', ''),
        ('<think></think>', ''),
        ('i <think> so', 'i <think> so'),
        ('i <think>think</think> so', 'i <think>think</think> so'),
        ('<thinking about it', '<thinking about it'),
        ('', ''),
    ],
)
def test_without_thoughts(text, reply):
    assert without_thoughts(text) == reply


@pytest.mark.parametrize(('text', 'reply'), [('hm', ''), ('hm</think>hi', 'hi'), ('<think>hm</think>hi', 'hi')])
def test_after_a_prompt_that_opens_a_block(text, reply):
    assert without_thoughts(text, opened=True) == reply


@pytest.mark.parametrize(
    ('prompt', 'inside'), [('x', False), ('x <think>\n', True), ('<think>\n\n</think>\n', False), ('</think>', False)]
)
def test_is_thinking(prompt, inside):
    assert is_thinking(prompt) is inside
