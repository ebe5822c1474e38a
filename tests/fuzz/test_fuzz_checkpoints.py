"""A run that resumes from any bytes either trains or ends with one sentence, and never runs code from the file."""

import contextlib
import copy
import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.fuzz_settings import fuzz
from hypothesis import given
from hypothesis import strategies as st
from parlai.core.message import Message
from parlai.scripts.train_model import TrainLoop, TrainModel

from spt_parlai.checkpoints.files import load_states
from spt_parlai.checkpoints.summary import read_summary
from spt_parlai.errors import UsageError
from spt_parlai.training import resume
from spt_parlai.training.seeding import random_state, restore_random_state

OPTIONS = dict(
    task='spt_parlai.tasks.sample',
    model='spt_parlai.agents:SptAgent',
    num_prompts=2,
    prompt_length=2,
    text_truncate=40,
    label_truncate=12,
    max_new_tokens=4,
    no_cuda=True,
    batchsize=2,
    seed=1,
    loglevel='error',
    update_freq=2,
    warmup_updates=3,
)
TENSORS = st.sampled_from(
    [
        lambda: torch.zeros(()),
        lambda: torch.zeros(3, 0),
        lambda: torch.full((2, 2, 16), torch.nan),
        lambda: torch.full((16,), torch.inf),
        lambda: torch.zeros(2, 2, 16, dtype=torch.int64),
        lambda: torch.zeros(16, 16, dtype=torch.complex64),
        lambda: torch.zeros(16, dtype=torch.bool),
        lambda: torch.zeros(16, 16, dtype=torch.float16),
        lambda: torch.zeros(16, 16, dtype=torch.float64),
        lambda: torch.zeros(1).expand(10**6, 10**6),
        lambda: torch.zeros(1).expand(16, 16),
        lambda: torch.eye(16).to_sparse(),
        lambda: torch.zeros(2, 2, 16, device='meta'),
        lambda: torch.quantize_per_tensor(torch.zeros(16), 1.0, 0, torch.qint8),
        lambda: torch.zeros(2, 2, 16),
        lambda: torch.ones(16),
        lambda: torch.eye(16),
        lambda: torch.nn.Parameter(torch.zeros(2, 2, 16)),
    ]
).map(lambda make: make())
NUMBERS = st.integers(-3, 3) | st.sampled_from([2**31, -(2**63), 2**64, 10**4000, -1, True]) | st.floats()
VALUES = st.recursive(
    st.none()
    | NUMBERS
    | st.text(max_size=4)
    | st.binary(max_size=4)
    | TENSORS
    | st.sampled_from([torch.float32, torch.Size([2]), {1}, 1j]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.integers(0, 4), inner, max_size=3)
        | st.lists(inner, max_size=2).map(tuple)
    ),
    max_leaves=4,
)


@pytest.fixture(scope='module')
def folder(tiny_llms, tmp_path_factory):
    """A folder with a model file that was saved between two updates of a warm-up."""
    folder = tmp_path_factory.mktemp('fuzz')
    options = dict(OPTIONS, llm=tiny_llms.opt, model_file=str(folder / 'model'))
    TrainModel.main(
        **options, max_train_steps=2, validation_every_n_steps=1, validation_max_exs=2, short_final_eval=True
    )
    loop = TrainLoop(TrainModel.setup_args().parse_kwargs(**options))
    loop.world.parley()
    loop.parleys_done = loop.parleys + 1
    loop.save_model()
    for left in folder.glob('model.checkpoint*'):
        left.unlink()
    states = load_states(folder / 'model')
    assert {'optimizer', 'lr_scheduler', 'warmup_scheduler', 'accumulated', 'progress'} <= set(states)
    assert states['progress']['train_stats']['valid_reports']
    return folder


@pytest.fixture(scope='module')
def resumed(folder, tiny_llms):
    """resumed(bytes): does all that a run does with a model file before it trains, and one update."""
    path = folder / 'fuzzed'
    opt = TrainModel.setup_args().parse_kwargs(
        **OPTIONS, llm=tiny_llms.opt, model_file=str(folder / 'model'), load_from_checkpoint=False
    )
    agent = TrainLoop(opt).agent
    heard = agent.observe(Message({'text': 'hi', 'labels': ['hello there'], 'episode_done': True}))
    clean, generators, calls = agent.state_dict(), random_state(), []

    def through_the_train_loop():
        for suffix in ('', '.opt', '.dict'):
            shutil.copy(path if not suffix else folder / f'model{suffix}', folder / f'whole{suffix}')
        (folder / 'whole.trainstats').unlink(missing_ok=True)
        loop = TrainLoop(
            TrainModel.setup_args().parse_kwargs(**OPTIONS, llm=tiny_llms.opt, model_file=str(folder / 'whole'))
        )
        loop.agent.batch_act([heard])
        loop.agent.batch_act([heard])

    def through_the_agent():
        states = agent.load(str(path))
        agent.init_optim(list(agent.model.parameters()), states.get('optimizer'), states.get('optimizer_type'))
        agent.build_lr_scheduler(states)
        progress = states.get('progress', {})
        if 'train_stats' in progress:
            resume.restore_train_stats(folder / 'fuzzed.trainstats', progress['train_stats'])
        if 'random' in progress:
            restore_random_state(progress['random'])
        agent.batch_act([heard])
        agent.batch_act([heard])
        assert all(torch.isfinite(p).all() for p in agent.model.parameters())

    def run(content: bytes):
        path.write_bytes(content)
        calls.append(1)
        with contextlib.suppress(UsageError):  # no other error
            read_summary(path)
        try:
            through_the_train_loop() if len(calls) % 15 == 0 else through_the_agent()
            return True
        except UsageError as error:
            assert '\n' not in str(error) and str(error).endswith('.') and len(str(error)) < 1500
            str(error).encode()
            return False
        finally:
            restore_random_state(generators)
            agent.load_state_dict(clean['model'])
            agent._number_grad_accum = 0

    return run


@pytest.fixture(scope='module')
def real(folder):
    return (folder / 'model').read_bytes()


def saved(states) -> bytes:
    file = io.BytesIO()
    torch.save(states, file)
    return file.getvalue()


def places(value, path=()):
    """The path of every entry in nested dictionaries and lists."""
    if path:
        yield path
    for key in (
        value if isinstance(value, dict) else range(min(len(value), 3)) if isinstance(value, (list, tuple)) else ()
    ):
        yield from places(value[key], (*path, key))


def replaced(value, path, new):
    """A copy in which the entry at `path` is replaced by `new`."""
    if not path:
        return new
    if isinstance(value, tuple):
        return tuple(replaced(list(value), path, new))
    value = copy.copy(value)
    value[path[0]] = replaced(value[path[0]], path[1:], new)
    return value


def test_the_real_one_is_taken(resumed, real):
    assert all(resumed(real) for _ in range(15))


@fuzz
@given(
    content=st.binary(max_size=300)
    | st.binary(max_size=100).map(lambda tail: b'PK\x03\x04' + tail)
    | st.binary(max_size=100).map(lambda tail: b'\x80\x02' + tail)
)
def test_any_bytes(resumed, content):
    assert not resumed(content)


@fuzz
@given(data=st.data())
def test_a_cut_or_flipped_file(resumed, real, data):
    content = bytearray(real)
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    if data.draw(st.booleans()):
        begin = data.draw(st.integers(0, len(content)))
        content[begin : begin + data.draw(st.integers(0, 50))] = data.draw(st.binary(max_size=50))
    resumed(bytes(content))


@fuzz
@given(data=st.data())
def test_another_structure(resumed, folder, data):
    states = load_states(folder / 'model')
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from([*places(states)]))
        if data.draw(st.booleans()):
            states = replaced(states, path, data.draw(VALUES))
        else:
            parent = states
            for key in path[:-1]:
                parent = parent[key]
            if isinstance(parent, (dict, list)):
                del parent[path[-1]]
    resumed(saved(states))


class Payload:
    """A pickle that makes a folder if it is read with code allowed."""

    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


def payloads(mark: str):
    return st.sampled_from(
        [
            (os.mkdir, (mark,)),
            (os.system, (f'mkdir {mark}',)),
            (eval, (f'__import__("os").mkdir({mark!r})',)),
            (exec, (f'import os; os.mkdir({mark!r})',)),
            (getattr, (Path(mark), 'mkdir')),
            (map, (os.mkdir, [mark])),
            (torch.load, (mark,)),
            (torch.hub.load, (mark, 'x')),
            (open, (mark, 'w')),
            (__import__, ('antigravity',)),
            (pickle.loads, (pickle.dumps(Payload((os.mkdir, (mark,)))),)),
        ]
    ).map(Payload)


@fuzz
@given(data=st.data())
def test_code_never_runs(resumed, real, folder, data):
    mark = folder / 'ran'
    payload = data.draw(payloads(str(mark)))
    states = load_states(folder / 'model')
    path = data.draw(st.sampled_from([*places(states)]))
    states = replaced(states, path, payload)
    kind = data.draw(st.sampled_from(['torch', 'legacy', 'pickle', 'inside a real file']))
    if kind == 'torch':
        content = saved(states)
    elif kind == 'legacy':
        file = io.BytesIO()
        torch.save(states, file, _use_new_zipfile_serialization=False)
        content = file.getvalue()
    elif kind == 'pickle':
        content = pickle.dumps(payload, protocol=data.draw(st.integers(0, 5)))
    else:
        content = rezipped(real, {'data.pkl': pickle.dumps(payload, protocol=2)})
    assert not resumed(content)
    assert not mark.exists()


def rezipped(real: bytes, changed: dict, compression=zipfile.ZIP_STORED) -> bytes:
    """The same archive with the content of some records replaced."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(real)) as old, zipfile.ZipFile(file, 'w', compression) as new:
        for record in old.infolist():
            new.writestr(record.filename, changed.get(record.filename.split('/', 1)[1], old.read(record)))
    return file.getvalue()


@pytest.mark.parametrize('record', ['data.pkl', 'data/0'])
@pytest.mark.parametrize('filling', [b'\x00', b']', b'('])
def test_a_zip_bomb_stays_shut(resumed, real, record, filling):
    bomb = rezipped(real, {record: filling * 50_000_000}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2_000_000 and not resumed(bomb)


def test_nested_and_repeated_without_end(resumed, folder):
    """A list that contains itself; ten levels of lists that contain the one below ten times; a very deep list; a number
    of more digits than Python writes."""
    states = load_states(folder / 'model')
    itself, levels, deep = [], [0], []
    itself.append(itself)
    for _ in range(10):
        levels = [levels] * 10
    for _ in range(300):
        deep = [deep]
    for value in (itself, levels, deep, 10**5000):
        for name in ('progress', 'spt'):
            assert not resumed(saved({**states, name: {**states[name], 'new': value}}))
        assert not resumed(saved({**states, 'spt': {**states['spt'], 'format': value}}))
