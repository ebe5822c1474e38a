"""Multi-process training and evaluation end to end, on two processes and no GPU."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import warm

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason='with CUDA, ParlAI starts the workers itself')

# An agent of ParlAI's whose module applies the patches, as SptAgent's does. The
# environment variable FAIL makes one of its workers fail, or all of them slow.
AGENT = """
import os, time
import torch.distributed as dist
import spt_parlai
from parlai.agents.transformer.transformer import TransformerGeneratorAgent
from tqdm import tqdm

class PatchedAgent(TransformerGeneratorAgent):
    def build_model(self):
        for _ in tqdm([0]):  # as transformers shows how an LLM loads: its lock is a semaphore
            return super().build_model()

    def train_step(self, batch):
        if os.environ.get('FAIL') == str(dist.get_rank()):
            raise RuntimeError('a worker failed on purpose')
        if os.environ.get('FAIL') == 'slow':
            print('working', flush=True)
            time.sleep(0.5)
        return super().train_step(batch)
"""

# One worker fails before it joins the group, while the first one waits for it.
FAILURE_BEFORE_JOINING = """
import time
from parlai.scripts import multiprocessing_train
from spt_parlai.parlai_hooks import multiprocess

def worker(rank, opt, port, rank_offset=0):
    if rank_offset:
        raise RuntimeError('cannot start')
    time.sleep(40)
    print('not noticed')

multiprocess._parlai_workers['train'] = worker
multiprocess._GRACE = 0.1

if __name__ == '__main__':
    multiprocessing_train.launch_and_train({'distributed_world_size': 2}, 1)
"""


@pytest.fixture(scope='module')
def workspace(tmp_path_factory):
    """A folder with a task, a dictionary and an agent."""
    folder = tmp_path_factory.mktemp('workspace')
    lines = [f'text:how are you {i} ?\tlabels:i am fine {i} .\tepisode_done:True' for i in range(8)]
    (folder / 'chat.txt').write_text('\n'.join(lines) + '\n')
    # ParlAI wants the dictionary to exist before a distributed run.
    words = '__null__ __start__ __end__ __unk__ how are you i am fine ? .'.split()
    (folder / 'model.dict').write_text(''.join(f'{word}\t1\n' for word in words))
    (folder / 'model.dict.opt').write_text('{"dict_lower": false}')
    (folder / 'patched.py').write_text(AGENT)
    (folder / 'failing.py').write_text(FAILURE_BEFORE_JOINING)
    return folder


class Spawned:
    """A command as a user starts it; the workers that it spawns import everything, too."""

    def __init__(self, workspace, *arguments):
        path = os.pathsep.join([str(workspace), os.path.dirname(os.path.dirname(os.path.dirname(__file__)))])
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=workspace,
            env={**os.environ, 'PYTHONPATH': path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def wait(self, seconds):
        try:
            self.printed, _ = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            raise
        return self._process.returncode


def parlai(workspace, script, *arguments, fail='', spawned=False):
    task = '-t fromfile:parlaiformat --fromfile-datatype-extension false'.split()
    folders = ['--fromfile-datapath', 'chat.txt', '--datapath', str(workspace)]
    words = [script, *task, *folders, '--model-file', 'model', '--distributed-world-size', '2', *arguments]
    if spawned:
        return Spawned(workspace, '-m', 'parlai', *words)
    environment = {**os.environ, 'FAIL': fail}
    output = workspace / 'output'
    return warm.Process(output, warm.script, 'parlai', *words, environment=environment, folder=workspace)


def train(workspace, steps, **options):
    model = '-m patched:PatchedAgent --n-layers 1 --n-heads 2 --embedding-size 8'
    limits = f'--ffn-size 8 --truncate 8 -bs 2 --max-train-steps {steps}'
    return parlai(workspace, 'mp_train', *model.split(), *limits.split(), **options)


def finish(process):
    """The output and the exit status; fails where a process is left behind."""
    status = process.wait(60)
    for _ in range(50):  # multiprocessing's own helper process ends a moment later
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return process.printed, status
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError('processes were left behind')


def test_train_then_evaluate(workspace):
    output, status = finish(train(workspace, 2, spawned=True))
    assert status == 0, output
    assert (workspace / 'model').exists()
    assert 'leaked' not in output  # semaphores, by multiprocessing's helper process when it ends

    logs = ['--datatype', 'valid', '--world-logs', 'log.jsonl', '--report-filename', 'report.json']
    output, status = finish(parlai(workspace, 'mp_eval', *logs))
    assert status == 0, output
    # Every worker writes what it saw, and the report covers both.
    assert (workspace / 'log_0.jsonl').exists()
    assert (workspace / 'log_1.jsonl').exists()
    assert json.loads((workspace / 'report.json').read_text())['report']['exs'] == 16


def test_a_failure_in_one_worker_ends_the_run(workspace):
    output, status = finish(train(workspace, 10, fail='1'))
    assert status == 1
    assert 'a worker failed on purpose' in output


def test_a_failure_before_joining_ends_the_run(workspace):
    output, status = finish(Spawned(workspace, 'failing.py'))
    assert status == 1
    assert 'cannot start' in output
    assert 'not noticed' not in output


def test_interrupt_ends_the_run(workspace):
    process = train(workspace, 1000, fail='slow')
    while 'working' not in process.printed:
        assert process.status is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    _, status = finish(process)
    assert status != 0
