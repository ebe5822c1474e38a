"""`spt plan`: shapes without weights, naive sums, and what is said where nothing fits."""

from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from spt_parlai.agents.llm import plan_for
from spt_parlai.cli import app
from spt_parlai.model.loading import load_llm
from spt_parlai.model.memory_estimate import _kept_by_a_row
from spt_parlai.planning import report
from spt_parlai.planning.estimate import Run, memory, speed, trained
from spt_parlai.planning.known import GIB
from spt_parlai.planning.shape import Shape, shape_of

LLAMA = 'meta-llama/Llama-2-7b-hf'
SMALL = Shape('x', 'here', 1000, 4, 200, 150, 50, 30, 10, 24.0, 8, 2)


@pytest.fixture(scope='module')
def llama():
    return shape_of(LLAMA, torch.bfloat16)


def test_a_shape_is_that_of_the_weights(llama):
    assert (llama.parameters, llama.layers, llama.vocabulary) == (6_738_415_616, 32, 32000)
    assert llama.layer == 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096 and llama.head == llama.embeddings == 32000 * 4096
    assert llama.cached == 2 * 4096 * 2
    demo, loaded = shape_of('demo', torch.float32), load_llm('demo')
    assert demo.parameters == loaded.num_parameters and demo.head == 0


def test_activations_are_those_that_autograd_keeps():
    shape, llm = shape_of('demo', torch.float32), load_llm('demo')
    kept = _kept_by_a_row(llm, 64)
    assert shape.kept * shape.layers * 64 == pytest.approx(kept, rel=0.15)


@pytest.mark.parametrize('placement', ['none', 'device map', 'hybrid', 'full'])
def test_memory_of_a_device(placement):
    run, devices, of_machine = Run(K=2, L=3, batchsize=5, dialogue=37, turns=3, reply=4, tokens_at_once=160), 8, 4
    sharers = {'hybrid': 4, 'full': 8}.get(placement, 1)
    weights = 2000 / (4 if placement == 'device map' else 1) / sharers + (400 if sharers > 1 else 0)
    layers = 1 if placement == 'device map' else 4
    rows = 4  # 160 // 2 // 40 = 2 dialogues of 2 prompts
    found = memory(run, SMALL, placement, devices, of_machine)
    assert found.weights == weights and found.activations == rows * 40 * 24 * layers
    assert found.logits == rows * 12 * 30 * (2 + 12)
    assert found.states == 4 * 4 * (2 * 3 * 10 + 2 * (100 + 10))
    assert found.cache == 32 * (40 + 32) * 8 * layers
    assert found.training == weights + found.activations + found.logits + found.states
    recomputed = memory(replace(run, recompute=True), SMALL, placement, devices, of_machine)
    assert recomputed.activations == rows * 40 * (layers * 10 * 2 + 24)


def test_full_fine_tuning_shards_what_trains():
    run = Run('full', 1, 0, batchsize=1, dialogue=8, turns=1, reply=2)
    one, two = (memory(run, SMALL, p, 2, 2) for p in ('none', 'full'))
    assert trained(run, SMALL) == 1000 and one.states == 16_000 == 2 * two.states
    assert one.weights == 4000 and two.weights == 2000 + 4 * 200


def test_time_of_a_step():
    run = Run(K=2, L=3, batchsize=5, dialogue=37, turns=3, reply=4, tokens_at_once=160)
    alone = speed(run, SMALL, 'none', 1, 1, 1e3, 1e3)
    products = 4 * 800 * (5 * 2 * 40) + 4 * 30 * 10 * (5 * 3 * 4) * 2
    assert alone.products == pytest.approx(products / 1e3) and alone.moved == 0
    assert alone.examples_per_s == pytest.approx(15 / (products / 1e3))
    full = speed(run, SMALL, 'full', 8, 4, 1e3, 1e3)
    gathers = 2 * 3 * 2000 * 7 / 8  # 10 rows are 3 passes of 4
    assert full.moved == pytest.approx(gathers + 2 * 4 * trained(run, SMALL) * 7 / 8)
    assert full.examples_per_s == pytest.approx(8 * 15 / (products / 1e3 + full.moved / 1e3))
    mapped = speed(run, SMALL, 'device map', 8, 4, 1e3, 1e3)  # two processes, whose devices work one after the other
    assert mapped.examples == 2 * 15 and mapped.products == alone.products


def test_the_fastest_that_fits_is_chosen(llama):
    eight = report.machine(8, 1, None, '80GiB', None, 'nvlink')
    assert report.best(list(report.options(Run(), llama, eight))).placement == 'none'
    small = report.machine(8, 1, None, '12GiB', None, 'nvlink')
    chosen = report.best(list(report.options(Run(), llama, small)))
    assert chosen.placement == 'full' and '--llm-sharding full' in chosen.words
    one = replace(small, devices=1, of_machine=1)
    assert report.best(list(report.options(Run(), llama, one))) is None
    assert report.advice(Run(), llama, one).startswith('use 2 such GPUs a machine and --llm-')


def test_what_would_fit_is_said_after_an_error(monkeypatch):
    opt = {
        'llm': LLAMA,
        'num_prompts': 4,
        'prompt_length': 1,
        'batchsize': 4,
        'text_truncate': 512,
        'tokens_at_once': 8192,
    }
    assert plan_for(opt, torch.bfloat16, 20 * GIB, 1) == '--checkpoint-activations true --tokens-at-once 8192'
    assert 'full' in plan_for(opt, torch.bfloat16, 12 * GIB, 8)
    assert plan_for({**opt, 'llm': 'no/such'}, torch.bfloat16, 1, 1) == ''


def test_the_command_prints_a_table_and_what_to_use():
    result = CliRunner().invoke(app, ['plan', '--llm', LLAMA, '--gpus', '8', '--gpu-memory', '24GiB'])
    assert result.exit_code == 0 and '6.74 B parameters' in result.output
    assert result.output.splitlines()[-1].startswith('Use: ')
    assert sum(line.startswith(('none, ', 'device map, ', 'full, ')) for line in result.output.splitlines()) == 12


@pytest.mark.parametrize(
    'words',
    [('--card', 'z80'), ('--gpu-memory', '24'), ('--network', 'smoke'), ('--agent', 'rag'), ('--dtype', 'int8')],
)
def test_a_wrong_option_is_named(words):
    result = CliRunner().invoke(app, ['plan', '--llm', LLAMA, *words])
    assert result.exit_code == 1 and result.output.startswith(f'{words[0]} {words[1]}: ')
