"""ParlAI's teachers read a user's files as this package does, and name the line that they cannot read."""

import json

import pytest
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser
from parlai.core.worlds import create_task

from spt_parlai.errors import UsageError

MARK = b'\xef\xbb\xbf'
TURNS = [{'id': 'a', 'text': 'hello\u2028you'}, {'id': 'b', 'text': 'hi\x85there'}]
CONVERSATION = json.dumps({'dialog': [TURNS]}, ensure_ascii=False).encode()


def acts(**options):
    """The first two messages of a task."""
    from parlai.agents.repeat_label.repeat_label import RepeatLabelAgent

    opt = ParlaiParser(True, False).parse_kwargs(datatype='train:ordered', **options)
    world = create_task(opt, [RepeatLabelAgent(opt)])
    for _ in range(world.num_examples()):
        world.parley()
        act = world.get_acts()[0]
        yield act['text'], list(act['labels'])


def convai2(folder, content):
    """`-t convai2` on a file that was put there by hand."""
    (folder / 'ConvAI2').mkdir()
    (folder / 'ConvAI2' / '.built').write_text('2000-01-01\nv5.0')
    (folder / 'ConvAI2' / 'train_self_original.txt').write_bytes(content)
    return {'task': 'convai2:self', 'datapath': str(folder)}


def jsonfile(folder, content):
    (folder / 'chats.jsonl').write_bytes(content)
    return {'task': 'jsonfile', 'jsonfile_datapath': str(folder / 'chats.jsonl')}


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert [*acts(**convai2(tmp_path, MARK + b'1 hello\thi\n'))] == [('hello', ['hi'])]
    (tmp_path / 'own.txt').write_bytes(MARK + b'text:hello\tlabels:hi\tepisode_done:True\n')
    own = {'task': 'fromfile:parlaiformat', 'fromfile_datapath': str(tmp_path / 'own.txt')}
    assert [*acts(**own)] == [('hello', ['hi'])]
    assert [*acts(**jsonfile(tmp_path, MARK + CONVERSATION))] == [('hello\u2028you', ['hi\x85there'])]


def test_a_byte_order_mark_in_an_option_file(tmp_path):
    (tmp_path / 'my.opt').write_bytes(MARK + b'{"batchsize": 3}')
    assert Opt.load(str(tmp_path / 'my.opt'))['batchsize'] == 3


def test_a_broken_line_of_numbered_dialogues_is_named(tmp_path):
    options = convai2(tmp_path, b'1 hello\thi\n2 nice to\nmeet you\tyes\n')
    with pytest.raises(UsageError, match='train_self_original.txt .* line 3, .*meet you.*; correct it'):
        next(acts(**options))


def test_separators_in_json_are_text(tmp_path):
    expected = [('hello\u2028you', ['hi\x85there'])]
    assert [*acts(**jsonfile(tmp_path, CONVERSATION + b'\r\n\n' + CONVERSATION))] == 2 * expected


def test_half_a_surrogate_pair_becomes_a_replacement_character(tmp_path):
    turns = [{'id': 'a', 'text': 'hello \ud83d'}, {'id': 'b', 'text': 'hi \ud83d there'}]
    options = jsonfile(tmp_path, json.dumps({'dialog': [turns]}).encode())
    assert [*acts(**options)] == [('hello \ufffd', ['hi \ufffd there'])]


@pytest.mark.parametrize('line', [b'{"dialog": [[{"id"', b'{"turns": []}', b'7', b'{"dialog": [["hello"]]}'])
def test_a_line_that_is_no_conversation_is_named(tmp_path, line):
    with pytest.raises(UsageError, match='chats.jsonl, line 2: .* is no conversation; write .*"dialog"'):
        next(acts(**jsonfile(tmp_path, CONVERSATION + b'\n' + line + b'\n')))


def test_a_missing_file_of_conversations_is_named(tmp_path):
    with pytest.raises(UsageError, match='none.jsonl cannot be read .No such file or directory.; give') as error:
        next(acts(task='jsonfile', jsonfile_datapath=str(tmp_path / 'none.jsonl')))
    assert isinstance(error.value, RuntimeError)  # as ParlAI raises it


def test_other_encodings_are_named(tmp_path):
    with pytest.raises(UsageError, match='chats.jsonl cannot be read .line 2 is not UTF-8 text.; give a file'):
        next(acts(**jsonfile(tmp_path, CONVERSATION + b'\ncaf\xe9\n')))
    with pytest.raises(UsageError, match='train_self_original.txt cannot be read .line 1 is not UTF-8 text'):
        next(acts(**convai2(tmp_path, b'1 caf\xe9\thi\n')))
