"""The benchmark runs on tiny shapes, and its counts of FLOPs and examples are right."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import warm
from helpers.runs import agent_of
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / 'projects' / 'benchmark'


@pytest.fixture
def run(tmp_path):
    """run(script, arguments) → what it prints. `bench.py` has a fork server of its own and is no such script."""

    def run(script, *arguments):
        environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'HF_HUB_OFFLINE': '1'}
        process = warm.Process(tmp_path / 'out', warm.script, FOLDER / script, *arguments, environment=environment)
        assert process.wait(300) == 0, process.printed[-3000:]
        return process.printed

    return run


def test_quick_run_compares_all_contenders(tmp_path):
    done = subprocess.run(
        [sys.executable, FOLDER / 'bench.py', *'--quick --no-curves --threads 1 --out'.split(), tmp_path],
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'HF_HUB_OFFLINE': '1'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shown = done.stdout
    result = json.loads((tmp_path / 'benchmark.json').read_text())
    names = {(r['contender'], r['K']) for r in result['comparison']}
    assert names == {
        ('naive', 2),
        ('per-turn', 2),
        ('packed', 2),
        ('together', 2),
        ('PEFT', 1),
        ('per-turn', 1),
        ('packed', 1),
    }
    for r in result['comparison']:
        assert r['examples_per_s'] > 0 and r['matmul_fraction'] > 0 and 0 <= r['padding'] < 1, r
        assert r['peak_bytes'] >= r['bytes_with_model'] > 0, r
    by = {r['contender']: r for r in result['comparison'] if r['K'] == 2 and r['dtype'] == 'float32'}
    naive, packed, together = by['naive'], by['packed'], by['together']
    assert naive['steps'][0]['flops'] / 2 > 10 * packed['steps'][0]['flops'] / packed['examples_per_step']
    assert result['claims']['packed / naive, examples/s'] > 2
    assert packed['padding'] < 0.03 < together['padding'] and packed['peak_bytes'] < together['peak_bytes']
    assert sum(result['profile']['shares'].values()) == pytest.approx(1, abs=0.05)
    for claim in result['claims']:
        assert claim in shown
    assert 'drawing replies' in shown
    assert [(r['K'], r['same']) for r in result['sampling']] == [(1, 4), (2, 4)]
    assert all(r['ratio'] > 1 for r in result['sampling'])


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / 'file').touch()
    words = ('--quick', '--out', tmp_path / 'file' / 'folder')
    process = warm.Process(tmp_path / 'out', warm.script, FOLDER / 'bench.py', *words)
    assert process.wait(60) == 1 and process.printed.startswith(f'--out {tmp_path}/file/folder: ')


def test_gpu_script_runs_without_a_gpu(run, tmp_path):
    options = '--device cpu --shape tiny-llama --K 2 --batch 2 --tokens-at-once 256 1024 --steps 1 --threads 1'
    shown = run('gpu.py', *options.split(), '--out', tmp_path)
    result = json.loads((tmp_path / 'tiny-llama.json').read_text())
    assert [(r['batch'], r['tokens_at_once']) for r in result['tried']] == [(2, 256), (2, 1024)]
    assert result['epoch_minutes'] == pytest.approx(131_438 / result['best']['examples_per_s'] / 60)
    assert 'one epoch of ConvAI2 (131,438 examples)' in shown


@pytest.mark.parametrize(
    'script, options, shown',
    [
        ('similarity.py', '--batch 4 --rounds 1', ('whole dialogues', 'any dialogue')),
        ('projection.py', '--tokens 8 --rounds 1', ('ours, 64 MB', 'all logits')),
        (
            'decoding.py',
            '--examples 4 --batchsize 2 --max-new-tokens 3 --repeats 1',
            ('batched search', "ParlAI's search", 'generate, groups', 'generate, reruns'),
        ),
    ],
)
def test_single_parts_are_compared(run, script, options, shown):
    lines = run(script, *options.split()).splitlines()
    for name in shown:
        assert [line for line in lines if line.startswith(name)], name
    if script == 'decoding.py':
        assert sum(line.endswith('4/4') for line in lines) == 4  # all ways give the same replies


def test_sessions_at_once_are_all_answered(run, tmp_path, tiny_llms):
    agent_of(tiny_llms.opt).save(str(tmp_path / 'model'))
    shown = run('serving.py', tmp_path / 'model', *'--sessions 3 --turns 2 --rounds 1'.split())
    for way in ('one at a time', 'together'):
        assert re.search(rf'{way} +│ 6 +│ 0 ', shown), shown


@pytest.mark.parametrize('shape', ['tiny', 'tiny-llama'])
def test_counted_flops_are_those_of_the_products(shape, monkeypatch):
    """They agree with torch's own counter, which sees every product of a forward and a backward pass."""
    monkeypatch.syspath_prepend(FOLDER)
    import flops
    import shapes

    lm = shapes.build(shape, torch.float32, torch.device('cpu')).requires_grad_(False)
    counted = flops.LLMShape.of(lm)
    assert (counted.D, counted.V, counted.layers) == (64, 8192, 2)
    words = torch.randn(3, 20, 64, requires_grad=True)
    counter = FlopCounterMode(display=False)
    with counter:
        lm(inputs_embeds=words).logits.sum().backward()
    by_operator = counter.get_flop_counts()['Global']
    linear = sum(n for name, n in by_operator.items() if 'attention' not in str(name) and 'bmm' not in str(name))
    without_attention = counted.training([20] * 3, 60) - 12 * 2 * 64 * 3 * 20 * 21 // 2
    assert linear == without_attention


def test_dialogues_are_those_of_the_file(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from dialogues import Reader, episodes

    (first, second) = episodes(None, 2)
    assert len(first) == 7 and first[0][0].count('your persona:') == 4 and first[0][1].startswith('good morning !')
    reader = Reader('demo', 8192, 384)
    packed = reader.packed([first, second])
    turns = reader.per_turn([(e, t) for e in (first, second) for t in range(len(e))])
    assert len(packed['text_vec']) == 2 and packed['batchsize'] == turns['batchsize'] == len(first) + len(second)
    assert packed['texts'] == turns['texts'] and torch.equal(packed['label_vec'], turns['label_vec'])
    assert packed['context_length'].tolist() == (turns['text_vec'] >= 0).sum(1).tolist()
