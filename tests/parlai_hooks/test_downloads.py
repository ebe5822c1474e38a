"""A data set that cannot be downloaded is reported in one sentence, with the way out."""

import hashlib
import os

import pytest
import requests
from parlai.core import build_data
from parlai.core.build_data import DownloadableFile

from spt_parlai.errors import UsageError


class Refused:
    """An HTTP session without a network; counts how often it was asked."""

    asked = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def get(self, *_, **__):
        type(self).asked += 1
        raise requests.ConnectionError('refused')

    head = get


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(build_data, 'get_http_session', Refused)
    monkeypatch.setattr(Refused, 'asked', 0)
    monkeypatch.setattr(build_data.time, 'sleep', lambda seconds: pytest.fail(f'waits {seconds} s'))
    return Refused


def test_no_network_is_told_at_once(no_network, tmp_path):
    with pytest.raises(UsageError) as error:
        DownloadableFile('http://x/c.tgz', 'c.tgz', 'hash').download_file(str(tmp_path / 'ConvAI2'))
    for part in (
        'ConvAI2',
        'http://x/c.tgz',
        str(tmp_path),
        'spt data convai2 --from FOLDER',
        '-dp DATAPATH',
        'spt_parlai.tasks.sample',
    ):
        assert part in str(error.value)
    assert isinstance(error.value, RuntimeError)  # as without this package
    assert no_network.asked == 1


def test_other_tasks_are_told_where_to_put_files(no_network, tmp_path):
    with pytest.raises(UsageError, match=f'put d.zip, not unpacked, into {tmp_path}/DailyDialog by hand'):
        DownloadableFile('http://x/d.zip', 'd.zip', 'hash').download_file(str(tmp_path / 'DailyDialog'))


def test_a_file_placed_by_hand_needs_no_network(no_network, tmp_path):
    (tmp_path / 'd.txt').write_text('data')
    DownloadableFile('http://x/d.txt', 'd.txt', hashlib.sha256(b'data').hexdigest(), zipped=False).download_file(
        str(tmp_path)
    )
    assert no_network.asked == 0


def test_a_wrong_file_placed_by_hand_is_refused_and_kept(no_network, tmp_path):
    (tmp_path / 'd.txt').write_text('mine')
    with pytest.raises(UsageError, match='d.txt') as error:
        DownloadableFile('http://x/d.txt', 'd.txt', '0' * 64, zipped=False).download_file(str(tmp_path))
    assert isinstance(error.value, AssertionError)  # as without this package
    assert (tmp_path / 'd.txt').read_text() == 'mine'


def test_half_a_download_is_not_taken_for_the_file_next_time(monkeypatch, tmp_path):
    class Broken(Refused):
        def head(self, *_, **__):
            return None

    def download(url, path, name):
        with open(os.path.join(path, name), 'w') as file:
            file.write('half')
        raise RuntimeError('Received less data than specified')

    monkeypatch.setattr(build_data, 'get_http_session', Broken)
    monkeypatch.setattr(build_data, 'download', download)
    with pytest.raises(UsageError, match='d.txt'):
        DownloadableFile('http://x/d.txt', 'd.txt', '0' * 64, zipped=False).download_file(str(tmp_path))
    assert not (tmp_path / 'd.txt').exists()
