"""What `--llm` may name, and what a model file stores of it."""

import pytest

from spt_parlai import hub
from spt_parlai.errors import UsageError
from spt_parlai.gguf_files import sources
from spt_parlai.gguf_files.sources import PACKAGED, PackagedLLM, find


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'some' / 'tiny.gguf'
    path.parent.mkdir()
    path.write_bytes(b'GGUF and more')
    return path


def test_a_file_and_the_folder_with_it(file):
    assert find(str(file)) == find(str(file.parent)) is not None
    assert find(str(file)).parts == (file,) and find(str(file)).is_right


def test_other_llms_are_none_of_them(tiny_llms):
    assert not any(find(llm) for llm in ('facebook/opt-125m', 'demo', '', ' ', tiny_llms.opt, 'x' * 300, 'nul\0byte'))


def test_a_folder_with_several(file):
    (file.parent / 'other.gguf').write_bytes(b'')
    with pytest.raises(UsageError, match=r'--llm .*holds 2 GGUF files \(other.gguf, tiny.gguf\); give one'):
        find(str(file.parent))


def test_a_folder_with_other_weights_is_a_model_folder(file):
    (file.parent / 'config.json').write_text('{}')
    assert find(str(file.parent)).parts == (file,)
    (file.parent / 'model.safetensors').write_bytes(b'')
    assert find(str(file.parent)) is None


def test_no_such_file(tmp_path):
    with pytest.raises(UsageError, match='--llm .*no.gguf: it cannot be read .No such file'):
        find(str(tmp_path / 'no.gguf'))


def test_what_a_model_file_stores(file):
    stored = hub.portable(str(file))
    assert stored.startswith(f'{file}#sha256:') and hub.portable(stored) == stored
    assert find(stored).is_right
    file.write_bytes(b'GGUF and another')
    assert not find(stored).is_right
    file.unlink()
    assert not find(stored).is_there


def test_a_stored_file_that_is_not_here(file):
    stored = hub.portable(str(file))
    file.unlink()
    with pytest.raises(UsageError, match=r'not on this machine; give the path of your copy of tiny.gguf: --llm PATH'):
        hub.resolve(stored)


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """An LLM in two packages, the first of which cannot be imported."""
    for i, content in enumerate((b'GGUF ', b'and more')):
        (tmp_path / f'tiny_llm{i}' / 'data').mkdir(parents=True)
        (tmp_path / f'tiny_llm{i}' / '__init__.py').write_text('raise ImportError')
        (tmp_path / f'tiny_llm{i}' / 'data' / 'part').write_bytes(content)
    digest = sources.hashlib.sha256(b'GGUF and more').hexdigest()
    files = ('tiny_llm0/data/part', 'tiny_llm1/data/part')
    llm = PackagedLLM('somebody/tiny', files, digest, 13, 'pip install tiny-llm', 'MIT')
    monkeypatch.setitem(PACKAGED, 'tiny', llm)
    return monkeypatch, tmp_path


def test_a_packaged_one(packaged, file):
    with pytest.raises(UsageError, match='--llm tiny: .*not on this machine; install it: pip install tiny-llm'):
        hub.resolve('tiny')
    monkeypatch, folder = packaged
    monkeypatch.syspath_prepend(str(folder))
    assert find('tiny').is_right and hub.portable('tiny') == 'tiny' and hub.hub_id('tiny') == 'somebody/tiny'
    assert hub.portable(str(file)) == 'tiny'  # a copy of it elsewhere
    (folder / 'tiny_llm1' / 'data' / 'part').write_bytes(b'and less')
    with pytest.raises(UsageError, match='--llm tiny: .*is not the file of this checksum; install it'):
        hub.resolve('tiny')


def test_hub_ids_of_others(tiny_llms):
    assert hub.hub_id(tiny_llms.opt) == tiny_llms.opt
