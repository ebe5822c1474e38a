"""Only the tensors of foreign files are read, and none of their code is run."""

import builtins
import random
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from spt_parlai.checkpoints.tensor_files import load_plain, read_tensors
from spt_parlai.errors import UsageError

EVERYTHING = re.compile('')


class Call:
    """A pickle that calls a function if it is read with code allowed."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture
def mark(tmp_path):
    return tmp_path / 'ran'


def payloads(mark):
    yield Call(subprocess.call, [sys.executable, '-c', f'open({str(mark)!r}, "w")'])
    yield Call(builtins.exec, f'open({str(mark)!r}, "w")')
    yield Call(builtins.open, str(mark), 'w')


@pytest.mark.parametrize('number', range(3))
def test_code_beside_the_tensors_is_skipped_and_not_run(tmp_path, mark, number):
    payload = list(payloads(mark))[number]
    torch.save({'module': {'w': torch.ones(2)}, 'args': payload}, tmp_path / 'file.pt')
    assert torch.equal(read_tensors(tmp_path / 'file.pt', EVERYTHING)['w'], torch.ones(2))
    assert not mark.exists()
    payload.call[0](*payload.call[1])  # its code runs if that is allowed
    assert mark.exists()


@pytest.mark.parametrize('number', range(3))
def test_code_in_place_of_a_tensor_is_no_tensor(tmp_path, mark, number):
    torch.save({'w': list(payloads(mark))[number]}, tmp_path / 'file.pt')
    assert not read_tensors(tmp_path / 'file.pt', EVERYTHING) and not mark.exists()


def test_code_in_a_file_without_an_index_is_refused(tmp_path, mark):
    torch.save({'args': next(payloads(mark))}, tmp_path / 'old.pt', _use_new_zipfile_serialization=False)
    with pytest.raises(UsageError, match='cannot be skipped without running code'):
        load_plain(tmp_path / 'old.pt')
    assert not mark.exists()


def test_plain_data_in_a_file_without_an_index(tmp_path):
    torch.save({'w': torch.ones(2)}, tmp_path / 'old.pt', _use_new_zipfile_serialization=False)
    assert torch.equal(read_tensors(tmp_path / 'old.pt', EVERYTHING)['w'], torch.ones(2))


@pytest.mark.parametrize(
    'nest',
    [
        lambda s: s,
        lambda s: {'module': s},
        lambda s: {'state_dict': s, 'n': 1},
        lambda s: {'state_dict': {'module': s}},
    ],
)
def test_finds_the_state_dict(tmp_path, nest):
    torch.save(nest({'a.w': torch.ones(2), 'b.w': torch.zeros(2), 3: torch.ones(1), 'a.n': 5}), tmp_path / 'file.pt')
    assert list(read_tensors(tmp_path / 'file.pt', re.compile('^a'))) == ['a.w']


def test_a_state_dict_inside_itself_ends(tmp_path):
    states = {}
    states['module'] = states
    torch.save(states, tmp_path / 'file.pt')
    assert read_tensors(tmp_path / 'file.pt', EVERYTHING) == {}


def test_tensors_without_values_are_no_tensors(tmp_path):
    torch.save({'meta': torch.ones(2, device='meta'), 'sparse': torch.eye(2).to_sparse()}, tmp_path / 'file.pt')
    assert read_tensors(tmp_path / 'file.pt', EVERYTHING) == {}


def test_outlives_its_file(tmp_path):
    """The file is mapped into memory, so tensors that are kept must be copies."""
    torch.save({'w': torch.arange(5000.0)}, tmp_path / 'file.pt')
    kept = read_tensors(tmp_path / 'file.pt', EVERYTHING)['w']
    with open(tmp_path / 'file.pt', 'r+b') as file:
        file.write(bytes((tmp_path / 'file.pt').stat().st_size))
    assert torch.equal(kept, torch.arange(5000.0))


def test_safetensors(tmp_path):
    save_file({'a.w': torch.ones(2), 'b.w': torch.zeros(2)}, tmp_path / 'x.safetensors')
    assert list(read_tensors(tmp_path / 'x.safetensors', re.compile('^b'))) == ['b.w']


@pytest.mark.parametrize('name', ['file.pt', 'file.bin', 'file.safetensors'])
def test_any_bytes_are_refused(tmp_path, name):
    generator = random.Random(0)
    torch.save({'w': torch.ones(2)}, tmp_path / 'whole')
    whole = (tmp_path / 'whole').read_bytes()
    contents = [b'\x80\x02' * (n % 2) + generator.randbytes(generator.randrange(200)) for n in range(100)]
    contents += [whole[:n] for n in range(0, len(whole), 97)]
    for content in contents:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError) as error:
            read_tensors(tmp_path / name, EVERYTHING)
        assert name in str(error.value)


@pytest.mark.parametrize('content', [[1], None, torch.ones(2)])
def test_what_is_no_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / 'file.pt')
    with pytest.raises(UsageError, match='holds no state dict'):
        read_tensors(tmp_path / 'file.pt', EVERYTHING)
