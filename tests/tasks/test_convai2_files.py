"""A user's own ConvAI2 files are installed as they are, and what is missing is derived from them."""

import pytest
from parlai.agents.repeat_label.repeat_label import RepeatLabelAgent
from parlai.core import build_data
from parlai.core.worlds import create_task
from parlai.scripts.display_data import setup_args
from typer.testing import CliRunner

from spt_parlai.cli import app
from spt_parlai.errors import UsageError
from spt_parlai.tasks.convai2_files import install_convai2

LINES = '1 your persona: i ski.\n2 hello\thi .\t\thi .|bye .\n3 bye\tbye .\t\thi .|bye .\n'
BARE = '1 your persona: i ski.\n2 hello\thi .\n3 bye\tbye .\n'


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / 'source'
    folder.mkdir()
    for fold in ('train', 'valid'):
        (folder / f'{fold}_self_original.txt').write_text(LINES)
    return folder


def spt(*arguments):
    return CliRunner().invoke(app, ['data', 'convai2', *map(str, arguments)])


def refusal(*arguments):
    result = spt('--from', *arguments)
    assert result.exit_code == 1 or isinstance(result.exception, UsageError)
    assert type(result.exception) in (UsageError, SystemExit), result.exception
    return str(result.exception)


def test_installs_and_derives_what_is_missing(source, tmp_path):
    (source / 'notes_about_none.txt').write_text('not data')
    assert spt('--from', source, '--datapath', tmp_path / 'data').exit_code == 0
    folder = tmp_path / 'data' / 'ConvAI2'
    assert sorted(p.name for p in folder.glob('*.txt')) == [
        f'{fold}_self_original{end}.txt' for fold in ('train', 'valid') for end in ('', '_no_cands')
    ]
    assert (folder / 'train_self_original.txt').read_text() == LINES
    assert (folder / 'valid_self_original_no_cands.txt').read_text() == BARE
    assert build_data.built(str(folder), 'v5.0')


def test_parlai_reads_what_was_installed(source, tmp_path):
    install_convai2(source, tmp_path / 'data')
    opt = setup_args().parse_kwargs(task='convai2:self', datapath=str(tmp_path / 'data'), datatype='train:ordered')
    world = create_task(opt, [RepeatLabelAgent(opt)])
    world.parley()
    act = world.get_acts()[0]
    assert (world.num_examples(), act['text'], list(act['labels'])) == (2, 'your persona: i ski.\nhello', ['hi .'])


def test_bare_files_alone_are_enough(tmp_path):
    (tmp_path / 'source' / 'deep').mkdir(parents=True)
    for fold in ('train', 'valid'):
        (tmp_path / 'source' / 'deep' / f'{fold}_self_original_no_cands.txt').write_text(BARE)
    folder = install_convai2(tmp_path / 'source', tmp_path / 'data')
    assert (folder / 'train_self_original.txt').read_text() == BARE


def test_missing_folder_is_refused(tmp_path):
    assert (
        refusal(tmp_path / 'no')
        == f"--from {tmp_path / 'no'}: no such folder; give the folder that holds ConvAI2's .txt files."
    )


def test_missing_file_is_refused(source, tmp_path):
    (source / 'valid_self_original.txt').unlink()
    sentence = refusal(source, '--datapath', tmp_path / 'data')
    assert f'--from {source}' in sentence and 'valid_self_original.txt' in sentence and 'give the folder' in sentence
    assert not (tmp_path / 'data').exists()


@pytest.mark.parametrize('content', [b'', b'hello there\n', b'{"a": 1}\n', b'\xff\xfe1 hello', b'1 caf\xe9\thi\n'])
def test_another_format_is_refused(source, tmp_path, content):
    (source / 'train_self_original.txt').write_bytes(content)
    sentence = refusal(source, '--datapath', tmp_path / 'data')
    assert str(source / 'train_self_original.txt') in sentence and "ConvAI2's own files" in sentence
    assert not (tmp_path / 'data').exists()


@pytest.mark.parametrize('separator', ['\u2028', '\u2029', '\x85', '\x0b', '\x0c', '\x1c'])
def test_a_line_separator_in_an_utterance_is_text(source, tmp_path, separator):
    said = LINES.replace('hi .\t', f'hi{separator}1 cat .\t', 1)
    (source / 'train_self_original.txt').write_text(said, encoding='utf-8')
    folder = install_convai2(source, tmp_path / 'data')
    for name, content in (('', said), ('_no_cands', BARE.replace('hi .', f'hi{separator}1 cat .'))):
        assert (folder / f'train_self_original{name}.txt').read_bytes() == content.encode()


@pytest.mark.parametrize('content', [b'\xef\xbb\xbf' + LINES.encode(), LINES.replace('\n', '\r\n').encode()])
def test_a_byte_order_mark_and_other_line_ends_are_left_out(source, tmp_path, content):
    (source / 'train_self_original.txt').write_bytes(content)
    folder = install_convai2(source, tmp_path / 'data')
    assert (folder / 'train_self_original.txt').read_bytes() == LINES.encode()
    assert (folder / 'train_self_original_no_cands.txt').read_bytes() == BARE.encode()


def test_files_in_their_place_are_read_before_they_are_replaced(source, tmp_path):
    folder = install_convai2(source, tmp_path / 'data')
    (folder / 'train_self_original.txt').write_bytes(b'\xef\xbb\xbf' + LINES.encode())
    install_convai2(folder, tmp_path / 'data', force=True)
    assert (folder / 'train_self_original.txt').read_text() == LINES
    assert not [*folder.glob('*.part')]


@pytest.mark.parametrize(
    'content, problem',
    [
        ('1 hello\thi .\n2 nice to meet\nyou\tthanks !\n', 'line 3, .*you.*thanks !.*does not start with a number'),
        ('1 hello\thi .\n2 i have\n1.5 dogs\tyes\n', 'line 3, .*does not start with a number'),
        ('1 hello\thi .\n2 yes\tno\n3 i have\n2 dogs\tyes\n', 'line 4, .*neither 1 nor above 3'),
        ('1 hello\thi .\n2 i have\n2\tdogs\n', 'line 3, .*does not start with a number'),
        ('1 hello\thi .\n\n2 why\tso\tmany\ttabs\n', "line 3, .*has 'many' where the reward is"),
        ('1 hello\rthere\thi .\n', 'line 1, .*contains a carriage return'),
        ('\n2 hello\thi .\n', 'line 2, .*does not start with "1 "'),
        ('\n', 'it is empty'),
    ],
)
def test_every_line_is_checked_before_anything_is_installed(source, tmp_path, content, problem):
    path = source / 'valid_self_original.txt'
    path.write_text(content, newline='')
    with pytest.raises(
        UsageError, match=f"^{path} is not in ConvAI2's format: {problem}.*; .*give ConvAI2's own files"
    ):
        install_convai2(source, tmp_path / 'data')
    assert not (tmp_path / 'data').exists()


def test_blank_lines_and_gaps_in_the_numbers_are_read_as_parlai_reads_them(source, tmp_path):
    (source / 'train_self_original.txt').write_text('1 hello\thi .\n\n3 bye\tbye .\t1.5\tbye .\n4\n')
    install_convai2(source, tmp_path / 'data')


def test_files_in_the_way_stay(source, tmp_path):
    install_convai2(source, tmp_path / 'data')
    (source / 'train_self_original.txt').write_text('1 new\tone\n')
    sentence = refusal(source, '--datapath', tmp_path / 'data')
    assert str(tmp_path / 'data' / 'ConvAI2') in sentence and '--force' in sentence
    assert (tmp_path / 'data' / 'ConvAI2' / 'train_self_original.txt').read_text() == LINES


def test_force_replaces_both_kinds(source, tmp_path):
    """The old file without candidates must not stay beside the new one with candidates."""
    folder = install_convai2(source, tmp_path / 'data')
    (source / 'train_self_original.txt').write_text('1 new\tone\t\tone|two\n')
    install_convai2(source, tmp_path / 'data', force=True)
    assert (folder / 'train_self_original_no_cands.txt').read_text() == '1 new\tone\n'


def test_the_same_file_twice_is_refused(source, tmp_path):
    (source / 'old').mkdir()
    (source / 'old' / 'train_self_original.txt').write_text('1 old\tone\n')
    sentence = refusal(source, '--datapath', tmp_path / 'data')
    assert str(source / 'old' / 'train_self_original.txt') in sentence and 'one of them' in sentence


def test_a_target_that_cannot_be_written_is_refused(source, tmp_path):
    (tmp_path / 'data').write_text('a file')
    sentence = refusal(source, '--datapath', tmp_path / 'data')
    assert str(tmp_path / 'data') in sentence and 'another --datapath' in sentence
