"""Personas of a chat, typed or from a file."""

import pytest

from spt_parlai.agents.persona import (
    announce,
    chosen_persona,
    draw_persona,
    persona_of_chat,
    read_persona_file,
    sample_personas,
)
from spt_parlai.errors import UsageError


@pytest.mark.parametrize(
    'typed, persona',
    [
        ('i ski.|i have a dog.', ['i ski.', 'i have a dog.']),
        (' i  ski. | ', ['i ski.']),
        ('', []),
        ('|', []),
        ('your persona: i ski.|your persona:i run.', ['i ski.', 'i run.']),
        ('__SILENCE__', []),
        ('я люблю чай', ['я люблю чай']),
        ('i \udcff ski.', ['i \ufffd ski.']),
    ],
)
def test_typed(typed, persona):
    assert chosen_persona({'persona': typed}) == persona


def test_none_given():
    assert chosen_persona({}) is None and chosen_persona({'persona': None, 'persona_file': None}) is None


@pytest.mark.parametrize(
    'content',
    [
        b'i ski.\ni run.\n',
        b'your persona: i ski.\r\n\r\n  your persona: i run.',
        b'\xef\xbb\xbfyour persona: i ski.\ni run.',
        'i\u2028ski.\ni\x85run.\n'.encode(),
    ],
)
def test_from_a_file(tmp_path, content):
    (tmp_path / 'persona.txt').write_bytes(content)
    assert chosen_persona({'persona_file': str(tmp_path / 'persona.txt')}) == ['i ski.', 'i run.']


@pytest.mark.parametrize(
    'content, reason',
    [
        (b'', 'is empty: write one sentence'),
        (b' \n\n', 'is empty: write one sentence'),
        (b'your persona:\n', 'is empty'),
        (b'\x89PNG\r\n\x1a\n\x00\x00', 'not UTF-8 text'),
        (b'\x7fELF\x00\x01', 'not UTF-8 text'),
        ('я'.encode('utf-16'), 'not UTF-8 text'),
        (b'i ski.\ni like caf\xe9s.\n', 'line 2 is not UTF-8 text'),
    ],
)
def test_a_file_without_a_persona_is_refused(tmp_path, content, reason):
    path = str(tmp_path / 'persona.txt')
    (tmp_path / 'persona.txt').write_bytes(content)
    with pytest.raises(UsageError) as error:
        read_persona_file(path)
    assert (
        f'--persona-file {path}' in str(error.value)
        and reason in str(error.value)
        and 'one sentence' in str(error.value)
    )


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UsageError, match='--persona-file .*nothing.*No such file.*give a text file'):
        read_persona_file(str(tmp_path / 'nothing'))
    with pytest.raises(UsageError, match='Is a directory'):
        read_persona_file(str(tmp_path))


def test_one_is_drawn_from_the_sample():
    assert tuple(draw_persona()) in sample_personas() and all(sample_personas())


def test_says_whose_it_is(capsys):
    announce('Bot', ['i ski.'])
    announce('Bot', [])
    assert capsys.readouterr().out.splitlines() == [
        '[ Bot has the persona ]',
        '    i ski.',
        '[ Bot has the persona ]',
        '    (none)',
    ]


def test_code_that_builds_an_agent_may_give_one(capsys):
    """As with `create_agent_from_model_file(file, {'persona': …})`; a script outside of chats has none."""
    stored = {'persona': 'i ski.', 'persona_file': None}
    given = {**stored, 'persona': 'i run.', 'override': {'persona': 'i run.'}}
    assert persona_of_chat(given, 'Bot') == ['i run.']
    assert persona_of_chat({**given, 'persona_file': 'nowhere'}, 'Bot') == ['i run.']  # the model's file is overridden
    assert persona_of_chat(stored, 'Bot') == persona_of_chat({**given, 'interactive_mode': False}, 'Bot') == []
    assert not capsys.readouterr().out
