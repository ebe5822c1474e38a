"""The pieces of a reply's text add up to it, and nothing is shown that a later token takes back."""

from spt_parlai.server.reply_text import ReplyText


def pieces(data, stops=(), limit=100):
    """Every byte of `data` is a token."""
    text = ReplyText(lambda ids: bytes(ids).decode('utf-8', 'replace'), stops, limit)
    shown = []
    for token in data:
        shown.append(text.push(token))
        if text.finish_reason:
            return shown, text
    return [*shown, text.end()], text


def test_white_space_is_shown_with_what_follows_it():
    shown, text = pieces(b' a  b ')
    assert shown == ['', 'a', '', '', '  b', '', ''] and text.text == 'a  b' and text.finish_reason == 'stop'


def test_a_stop_string_never_shows_not_even_its_beginning():
    shown, text = pieces(b'ok Q:x', stops=('Q:',))
    assert ''.join(shown) == text.text == 'ok' and 'Q' not in ''.join(shown)
    shown, text = pieces(b'no Qs', stops=('Q:',))
    assert shown[4] == ' Qs' and text.text == 'no Qs'


def test_a_character_is_shown_whole():
    shown, text = pieces('é!'.encode())
    assert shown == ['', 'é', '!', ''] and text.text == 'é!'


def test_a_reply_ends_at_its_greatest_length():
    shown, text = pieces(b'abcdef', limit=3)
    assert ''.join(shown) == 'abc' and text.finish_reason == 'length'


def test_an_end_inside_a_character_or_stop_string_shows_what_there_is():
    assert pieces(b'a Q', stops=('Q:',))[1].text == 'a Q'
