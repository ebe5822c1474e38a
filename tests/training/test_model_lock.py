"""Two training runs cannot write one model file at the same time."""

import contextlib
import errno
import os
import signal

import pytest
from helpers.runs import train

from spt_parlai.agents import SptAgent
from spt_parlai.errors import UsageError
from spt_parlai.training import model_lock


@contextlib.contextmanager
def another_process(act):
    """A fork of this process that acts, prints one byte and waits to be killed."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            act()
            os.write(write, b'1')
            signal.pause()
        finally:
            os._exit(1)
    os.close(write)
    try:
        assert os.read(read, 1) == b'1'
        yield pid
    finally:
        os.close(read)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture
def model_file(tmp_path):
    path = str(tmp_path / 'runs' / 'm')
    yield path
    model_lock.release(path)


def test_another_run_is_told_who_trains(tiny_llms, model_file, monkeypatch):
    monkeypatch.setattr(SptAgent, '__init__', lambda *_: pytest.fail('builds the agent'))
    with another_process(lambda: model_lock.hold(model_file)) as pid, pytest.raises(UsageError) as error:
        train(model_file, tiny_llms.opt, max_train_steps=1)
    assert str(error.value).startswith(f'--model-file {model_file}: process {pid} on ')


def test_a_killed_process_leaves_no_lock(model_file):
    with another_process(lambda: model_lock.hold(model_file)):
        pass
    assert os.path.exists(f'{model_file}.lock')
    model_lock.hold(model_file)
    model_lock.hold(model_file)  # the same process may begin again
    model_lock.release(model_file)
    assert not os.path.exists(f'{model_file}.lock')


def test_a_fork_of_a_killed_run_does_not_hold_its_lock(model_file):
    """A worker of --num-workers may outlive a run that is killed."""
    with another_process(lambda: _hold_and_fork(model_file)):
        with pytest.raises(UsageError):
            model_lock.hold(model_file)
    model_lock.hold(model_file)


def _hold_and_fork(model_file):
    model_lock.hold(model_file)
    if not os.fork():
        signal.alarm(20)  # it outlives its parent by that
        with pytest.raises(UsageError):
            model_lock.hold(model_file)
        signal.pause()


def test_a_lock_that_its_owner_removes_meanwhile_is_taken_anew(model_file, monkeypatch):
    lockf, calls = model_lock.fcntl.lockf, []

    def slow(file, how):
        if not calls:
            os.unlink(file.name)
        calls.append(how)
        lockf(file, how)

    monkeypatch.setattr(model_lock.fcntl, 'lockf', slow)
    model_lock.hold(model_file)
    assert len(calls) == 2 and os.path.exists(f'{model_file}.lock')


def test_a_file_system_without_locks(model_file, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, 'no locks')

    monkeypatch.setattr(model_lock.fcntl, 'lockf', unsupported)
    model_lock.hold(model_file)


def test_a_run_that_ends_removes_its_lock(tiny_llms, tmp_path):
    train(tmp_path / 'm', tiny_llms.opt, max_train_steps=1)
    assert not [file for file in os.listdir(tmp_path) if 'lock' in file]
