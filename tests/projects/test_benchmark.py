"""The benchmark runs on tiny shapes, and its counts of FLOPs and examples are right."""

import json
import os
import re
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
    """run(script, arguments) → what it prints. Each measurement of `bench.py` is a fork of the same fork server."""

    def run(script, *arguments, status=0):
        environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'HF_HUB_OFFLINE': '1'}
        process = warm.Process(tmp_path / 'out', warm.script, FOLDER / script, *arguments, environment=environment)
        assert process.wait(300) == status, process.printed[-3000:]
        return process.printed

    return run


def test_quick_run_compares_all_contenders(run, tmp_path):
    shown = run('bench.py', *'--quick --no-curves --threads 1 --out'.split(), tmp_path)
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


def test_a_machine_is_measured_in_training_and_evaluation(tmp_path, tiny_llms, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    import job
    import machine

    monkeypatch.setattr(job, 'in_fresh_process', job.measure)
    monkeypatch.setattr(job, 'matmul_rate', lambda *args: 1e9)
    options = '--device cpu --dtype float32 --K 2 --batch 2 --tokens-at-once 256 1024 --steps 1 --threads 1'
    monkeypatch.setattr('sys.argv', ['', '--llm', 'tiny', tiny_llms.opt, *options.split(), '--out', str(tmp_path)])
    machine.main()
    result = json.loads((tmp_path / 'machine.json').read_text())
    assert list(result['llms']) == ['tiny', tiny_llms.opt]
    shown = capsys.readouterr().out.replace('\n', ' ')
    for llm, found in result['llms'].items():
        assert [(r['batch'], r['tokens_at_once']) for r in found['training']] == [(2, 256), (2, 1024)]
        assert found['epoch_hours'] == pytest.approx(131_438 / found['best']['examples_per_s'] / 3600)
        training, evaluation = found['profile']['steps'][0], found['evaluation']['steps'][0]
        assert evaluation['tokens'] == training['tokens'] and 2 < training['flops'] / evaluation['flops'] < 3
        operations = found['profile']['operations']
        assert sum(operations.values()) == pytest.approx(1) and min(operations.values()) > 0.001
        assert (
            f'{llm}, time of a step by kind of operation: matrix products {operations["matrix products"]:.1%}' in shown
        )
        assert f'{llm}: an epoch of ConvAI2 (131,438 examples) takes' in shown


@pytest.mark.parametrize(
    'script, option, value, sentence',
    [
        ('machine.py', '--llm', 'no/such-llm', ' is not in the local Hugging Face cache'),
        ('machine.py', '--data', 'no-such-folder', ': the folder has no ConvAI2/train'),
        ('machine.py', '--tokenizer', 'no/such-llm', ' is not in the local Hugging Face cache'),
        ('bench.py', '--data', 'no-such-folder', ': the folder has no ConvAI2/train'),
        ('bench.py', '--tokenizer', 'no/such-llm', ' is not in the local Hugging Face cache'),
        ('bench.py', '--out', FOLDER / 'README.md', ': '),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_measured(run, tmp_path, script, option, value, sentence):
    printed = run(script, '--device', 'cpu', '--out', tmp_path, option, value, status=1)
    assert printed.startswith(f'{option} {value}{sentence}') and 'Traceback' not in printed


@pytest.mark.parametrize(
    'script, options, shown',
    [
        ('similarity.py', '--batch 4 --rounds 1', ('whole dialogues', 'any dialogue')),
        ('projection.py', '--tokens 8 --rounds 1', ('ours, 64 MB', 'all logits')),
        (
            'evaluation.py',
            '--dtype float32 --dialogues 1 --max-new-tokens 3 --rounds 1',
            ('without replies', 'with replies', 'operations, turn by turn to whole dialogues: '),
        ),
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
    if script == 'evaluation.py':
        rows = [line.split() for line in lines if 'replies  ' in line and 'ratio' not in line]
        assert [len(set(row[6].split('/'))) for row in rows] == [1, 1] and all(float(row[7]) < 1e-4 for row in rows)


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

    lm = shapes.build(shape, 'float32').requires_grad_(False)
    counted = flops.LLMShape.of(lm)
    assert (counted.width, counted.D, counted.V, counted.layers) == (64, 64, 8192, 2)
    words = torch.randn(3, 20, 64, requires_grad=True)
    counter = FlopCounterMode(display=False)
    with counter:
        lm(inputs_embeds=words).logits.sum().backward()
    by_operator = counter.get_flop_counts()['Global']
    linear = sum(n for name, n in by_operator.items() if 'attention' not in str(name) and 'bmm' not in str(name))
    without_attention = counted.training([20] * 3, 60) - 12 * 2 * 64 * 3 * 20 * 21 // 2
    assert linear == without_attention
    assert counted.forward([20] * 3, 60) == without_attention / 2 + 4 * 2 * 64 * 3 * 20 * 21 // 2


def test_heads_may_be_wider_than_the_hidden_size(monkeypatch):
    """As those of Gemma 3, whose four heads of 256 belong to a hidden size of 640."""
    monkeypatch.syspath_prepend(FOLDER)
    import flops
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {'hidden_size': 32, 'intermediate_size': 64, 'num_hidden_layers': 3, 'vocab_size': 100}
    lm = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=1, head_dim=16, **sizes))
    counted = flops.LLMShape.of(lm)
    assert (counted.width, counted.D, counted.V, counted.layers) == (64, 32, 100, 3)
    lm.set_attn_implementation('eager')  # whose products are seen, and are squares
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        lm.model.layers[0].self_attn(
            torch.randn(1, 20, 32),
            position_embeddings=(torch.ones(1, 20, 16), torch.zeros(1, 20, 16)),
            attention_mask=None,
        )
    products = sum(n for name, n in counter.get_flop_counts()['Global'].items() if 'bmm' in str(name))
    assert products == 4 * counted.width * 20 * 20


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
