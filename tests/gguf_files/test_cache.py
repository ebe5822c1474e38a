"""Folders of the cache are made once, whole or not at all, and made again if they are damaged."""

from concurrent.futures import ThreadPoolExecutor
from time import sleep

import pytest

from spt_parlai.gguf_files import cache as module
from spt_parlai.gguf_files.cache import cached_folder, is_whole


@pytest.fixture
def make():
    """Fill a folder with two files, and count how often."""

    def fill(folder):
        fill.calls += 1
        (folder / 'a').write_bytes(b'abc' * 1000)
        sleep(0.05)
        (folder / 'b').write_text('b')

    fill.calls = 0
    return fill


def test_it_is_made_once(make, cache):
    folder = cached_folder('x', make)
    assert folder == cache / 'x' and cached_folder('x', make) == folder
    assert make.calls == 1 and {file.name for file in folder.iterdir()} == {'a', 'b', 'manifest.json'}


def test_by_one_of_several_at_once(make, cache):
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: cached_folder('x', make), range(4)))) == 1
    assert make.calls == 1


def cut(folder):
    (folder / 'a').write_bytes(b'abc')


def flip(folder):
    (folder / 'a').write_bytes(b'abd' * 1000)


def lose(folder):
    (folder / 'b').unlink()


def garble(folder):
    (folder / 'manifest.json').write_text('[]')


@pytest.mark.parametrize('damage', [cut, flip, lose, garble])
def test_a_damaged_one_is_made_again(make, damage):
    folder = cached_folder('x', make)
    damage(folder)
    module._checked.clear()  # as in another process
    assert not is_whole(folder)
    assert is_whole(cached_folder('x', make)) and make.calls == 2


def test_nothing_is_left_of_one_that_fails(make, cache):
    def fail(folder):
        (folder / 'a').write_text('a')
        raise OSError('full')

    with pytest.raises(OSError, match='full'):
        cached_folder('x', fail)
    assert not [path.name for path in cache.iterdir() if path.suffix != '.lock']
    assert is_whole(cached_folder('x', make))


def test_what_a_killed_process_left_is_removed(make, cache):
    (cache / 'x.part1').mkdir(parents=True)
    cached_folder('x', make)
    assert not (cache / 'x.part1').exists()


@pytest.mark.parametrize(
    'platform, variable, place',
    [
        ('linux', None, '.cache/spt_parlai'),
        ('darwin', None, 'Library/Caches/spt_parlai'),
        ('win32', 'LOCALAPPDATA', 'local/spt_parlai'),
    ],
)
def test_where_it_is(monkeypatch, tmp_path, platform, variable, place):
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr('sys.platform', platform)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / 'local'))
    assert module.cache_root() == tmp_path / place
