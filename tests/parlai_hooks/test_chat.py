"""A chat on the command line ends quietly, and finds personas in a user's own files."""

import json
from pathlib import Path

import pytest
from parlai.agents.repeat_query.repeat_query import RepeatQueryAgent
from parlai.scripts.eval_model import EvalModel
from parlai.scripts.interactive import Interactive
from parlai.scripts.self_chat import SelfChat

from spt_parlai.errors import UsageError
from spt_parlai.tasks.convai2_files import install_convai2


@pytest.fixture
def types(monkeypatch):
    """types(lines, end): what a person types, and with what the chat ends. Returns what is not yet typed."""

    def prepare(*messages):
        typed = iter(messages)

        def type_next(prompt):
            message = next(typed)
            if not isinstance(message, str):
                raise message
            return message

        monkeypatch.setattr('builtins.input', type_next)
        return typed

    return prepare


@pytest.mark.parametrize('end', ['[EXIT]', EOFError, KeyboardInterrupt])
@pytest.mark.parametrize('task', ['interactive', 'integration_tests'])
def test_a_chat_ends_without_a_traceback(task, end, types, capsys, tmp_path):
    typed = types('hello', '[DONE]', 'again', end)
    Interactive.main('-m', 'repeat_query', '-t', task, '-dp', str(tmp_path))
    assert capsys.readouterr().out.count('CHAT DONE') == 2 and next(typed, None) is None


@pytest.mark.parametrize('task', ['interactive', 'integration_tests'])
def test_ctrl_c_in_the_middle_of_a_reply_ends_a_chat(task, types, monkeypatch, tmp_path):
    """And what was said before is kept."""
    act = RepeatQueryAgent.act

    def interrupted(self):
        if self.observation['text'] == 'stop':
            raise KeyboardInterrupt
        return act(self)

    monkeypatch.setattr(RepeatQueryAgent, 'act', interrupted)
    typed = types('hello', 'stop', 'more')
    Interactive.main('-m', 'repeat_query', '-t', task, '-dp', str(tmp_path), '--outfile', str(tmp_path / 'chat.jsonl'))
    assert next(typed) == 'more'
    (line,) = (tmp_path / 'chat.jsonl').read_text().splitlines()
    assert [turn['text'] for turns in json.loads(line)['dialog'] for turn in turns] == ['hello', 'hello']


PERSONAS = {'your persona: i ski.\nyour persona: i have a cat.', 'your persona: i bake.'}
FILE = (
    '1 your persona: i ski.\n2 your persona: i have a cat.\n3 hello\thi\n4 bye\tbye\n'
    '1 your persona: i bake.\n2 hello\thi\n1 your persona: i bake.\n2 good day\thi\n'
)


@pytest.fixture
def own_convai2(tmp_path):
    """The datapath with a copy of ConvAI2 that has no files of both personas."""
    source = tmp_path / 'source'
    source.mkdir()
    for fold in ('train', 'valid'):
        (source / f'{fold}_self_original_no_cands.txt').write_text(FILE)
    install_convai2(source, tmp_path / 'data')
    return str(tmp_path / 'data')


@pytest.mark.parametrize('datatype', ['train', 'valid', 'test'])
def test_personas_of_the_users_own_convai2(own_convai2, datatype):
    from parlai.tasks.convai2.worlds import get_personas

    assert set(get_personas({'datapath': own_convai2, 'datatype': datatype})) == PERSONAS


def test_both_commands_chat_about_the_users_own_convai2(own_convai2, types, capsys):
    types('hello', '[DONE]', '[EXIT]')
    Interactive.main('-m', 'repeat_query', '-t', 'convai2', '-dp', own_convai2)
    assert 'Your partner was playing the following persona' in capsys.readouterr().out
    SelfChat.main('-m', 'repeat_query', '-t', 'convai2', '-dp', own_convai2, '--outfile', f'{own_convai2}/chat')
    assert 'your persona: i ' in Path(f'{own_convai2}/chat.jsonl').read_text()


def test_a_missing_file_of_convai2_names_the_task_that_is_there(own_convai2):
    with pytest.raises(
        UsageError, match='-t convai2:both: .*/valid_both_original.txt: no such file; use -t convai2:self'
    ):
        EvalModel.main(
            '-m', 'spt_parlai.agents:TextPromptAgent', '-t', 'convai2:both', '-dp', own_convai2, '--llm', 'demo'
        )


def test_a_file_of_both_personas_is_parlais(own_convai2):
    from parlai.tasks.convai2.worlds import get_personas

    with open(f'{own_convai2}/ConvAI2/valid_both_original.txt', 'w') as file:
        for persona in ('swim', 'sing'):
            file.write(f"1 your persona: i {persona}.\n2 partner's persona: i {persona}, too.\n3 hi\thi\t\thi|ho\n")
    opt = SelfChat.setup_args().parse_kwargs(
        model='repeat_query', task='convai2', datapath=own_convai2, datatype='valid'
    )
    assert not set(get_personas(opt)) & PERSONAS
