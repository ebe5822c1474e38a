"""Folders of shards: written by some processes and read by others, and never a way to run code."""

import os
import pickle

import pytest
import torch
import torch.distributed as dist
from helpers import warm
from torch.distributed import checkpoint

from spt_parlai.checkpoints import shards
from spt_parlai.errors import UsageError

DIVIDED = torch.arange(5.0 * shards.BLOCK).view(5, shards.BLOCK)
WHOLE = torch.tensor([1.0, 2.0, 3.0])


def share(rank, processes):
    """The blocks of one process as `write` takes them: padded, so that all have as many."""
    most = -(-len(DIVIDED) // processes)
    own = DIVIDED[rank * most : (rank + 1) * most]
    padding = torch.full((most - len(own), shards.BLOCK), -1.0)
    return torch.cat([own, padding]).flatten(), len(DIVIDED), len(own)


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', world_size=4, rank=rank)
    shards.write(folder / 'a', {'x|b': WHOLE}, {'x|unit0': share(rank, 4)}, dist.group.WORLD)
    pair = [dist.new_group([0, 1]), dist.new_group([2, 3])][rank // 2]  # two machines, each of which reads it all
    expected, whole = share(rank % 2, 2), torch.zeros(3)
    read = torch.full_like(expected[0], 7.0)
    shards.read(folder / 'a', {'x|b': whole}, {'x|unit0': (read, *expected[1:])}, pair)
    assert torch.equal(whole, WHOLE) and torch.equal(read, expected[0].clamp(min=0))  # padding is zero again
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shards')
    context = torch.multiprocessing.get_context(warm.start_method())
    started = [context.Process(target=process, args=(rank, folder)) for rank in range(4)]
    for each in started:
        each.start()
    for each in started:
        each.join(60)
        each.kill()
    assert [each.exitcode for each in started] == [0] * 4
    return folder / 'a'


def test_four_processes_write_and_two_or_one_read(written):
    shapes = shards.shapes_in(written)
    assert shapes == {'x|b': (3,), 'x|unit0': (5, shards.BLOCK)}
    found = {name: torch.zeros(shape) for name, shape in shapes.items()}
    shards.read(written, found, {}, None)
    torch.testing.assert_close(found, {'x|b': WHOLE, 'x|unit0': DIVIDED}, rtol=0, atol=0)


def test_a_missing_folder(tmp_path):
    with pytest.raises(UsageError, match='none is missing: it has the states of the optimizer.*--init-model'):
        shards.shapes_in(tmp_path / 'none')


class Harmful:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_list_of_tensors_runs_no_code(tmp_path):
    harm = tmp_path / 'harm'
    (tmp_path / '.metadata').write_bytes(pickle.dumps(Harmful(harm)))
    with pytest.raises(UsageError, match='is damaged .its list of tensors holds a mkdir.; restore it'):
        shards.shapes_in(tmp_path)
    assert not harm.exists()
    pickle.loads((tmp_path / '.metadata').read_bytes())  # Python's own reader runs it
    assert harm.exists()


def save_alone(folder, tensors):
    checkpoint.save(tensors, checkpoint_id=folder, no_dist=True)


def test_a_tensor_outside_the_folder(tmp_path):
    save_alone(tmp_path, {'x|b': WHOLE})
    listed = pickle.loads((tmp_path / '.metadata').read_bytes())
    for place in listed.storage_data.values():
        place.relative_path = '../elsewhere'
    (tmp_path / '.metadata').write_bytes(pickle.dumps(listed))
    with pytest.raises(UsageError, match='is damaged .a tensor is outside the folder'):
        shards.shapes_in(tmp_path)


def test_a_tensor_that_is_not_finite_or_has_another_shape(tmp_path):
    save_alone(tmp_path, {'x|b': torch.tensor([1.0, float('nan'), 3.0])})
    with pytest.raises(UsageError, match='is damaged .a tensor in it is not finite'):
        shards.read(tmp_path, {'x|b': torch.zeros(3)}, {}, None)
    with pytest.raises(UsageError, match='is damaged .ValueError: Size mismatch'):
        shards.read(tmp_path, {'x|b': torch.zeros(4)}, {}, None)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UsageError, match='file/x cannot be written .*; make room or give another path'):
        shards.write(tmp_path / 'file' / 'x', {'x|b': WHOLE}, {}, None)


def test_folders_of_earlier_checkpoints_are_removed(tmp_path):
    path = str(tmp_path / 'model')
    new = shards.new_folder(path)
    for folder in (new, shards.new_folder(path), shards.new_folder(f'{path}.checkpoint')):
        folder.mkdir()
    shards.remove_others(path, new)
    left = sorted(folder.name.rsplit('-', 1)[0] for folder in tmp_path.iterdir())
    assert left == ['model.checkpoint.shards', 'model.shards'] and new.is_dir()
