"""A user's text file as lines."""

import pytest

from spt_parlai.text_files import read_lines

SEPARATORS = ['\u2028', '\u2029', '\x85', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e']  # where str.splitlines splits, too


@pytest.mark.parametrize('separator', SEPARATORS)
def test_only_line_breaks_end_a_line(tmp_path, separator):
    (tmp_path / 'text.txt').write_text(f'one{separator}1 two\nthree\n', encoding='utf-8')
    assert read_lines(tmp_path / 'text.txt') == [f'one{separator}1 two', 'three']


@pytest.mark.parametrize(
    'content, lines',
    [
        (b'', []),
        (b'\n', ['']),
        (b'a\n\nb', ['a', '', 'b']),
        (b'a\r\nb\r\n', ['a', 'b']),
        (b'\xef\xbb\xbfa\nb\n', ['a', 'b']),
        (b'\xef\xbb\xbf', []),
        ('я\n🙂\n'.encode(), ['я', '🙂']),
    ],
)
def test_line_ends_and_a_byte_order_mark_are_no_text(tmp_path, content, lines):
    (tmp_path / 'text.txt').write_bytes(content)
    assert read_lines(str(tmp_path / 'text.txt')) == lines


@pytest.mark.parametrize(
    'content, reason',
    [
        (b'a\ncaf\xe9\n', 'line 2 is not UTF-8 text'),
        (b'a\nb\n\xed\xa0\xbd\n', 'line 3 is not UTF-8 text'),
        ('a'.encode('utf-16'), 'line 1 is not UTF-8 text'),
        (b'a\nb\x00\n', 'line 2 is not UTF-8 text'),
    ],
)
def test_the_line_that_is_no_text_is_named(tmp_path, content, reason):
    (tmp_path / 'text.txt').write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_lines(tmp_path / 'text.txt')


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match='^No such file or directory$'):
        read_lines(tmp_path / 'no')
    with pytest.raises(ValueError, match='^Is a directory$'):
        read_lines(tmp_path)
