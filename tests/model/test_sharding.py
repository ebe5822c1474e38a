"""Shares, gathers and votes, in four processes that share one start."""

import socket

import pytest
import torch
import torch.distributed as dist
from helpers import warm
from transformers import AutoModelForCausalLM

from spt_parlai.model import sharding
from spt_parlai.model.causal_lm import CausalLM
from spt_parlai.model.loading import load_llm


def run(llm: CausalLM, times: int):
    """The gradients of some passes of rows of different lengths."""
    gradients = []
    for number in range(times):
        words = llm.embed(torch.arange(3, 9 + number)[None]).requires_grad_()
        targets, wanted = torch.tensor([4, 5]), torch.tensor([True, False])
        log_probs = llm.log_probs_at(words, torch.tensor([2, 5]), targets, wanted).log_probs
        (gradient,) = torch.autograd.grad(log_probs.sum(), words)
        gradients.append(gradient)
    return gradients


def process(rank, llms, folder):
    """One of four processes; those of an odd rank run twice, the others once or not at all."""
    torch.set_num_threads(1)
    socket.gethostname = lambda: f'machine {rank // 2}'
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', world_size=4, rank=rank)
    for kind, divided in (('full', 4), ('hybrid', 2)):
        for path in llms:
            expected = run(load_llm(path), 2)
            llm = load_llm(path, sharding=kind)
            found = run(llm, 2 if rank % 2 else rank // 2)
            assert all(map(torch.equal, found, expected))
            sharding.run_along()
            units = sharding._current.units
            held = sum(len(unit.share) for unit in units)
            assert llm.dtype == torch.float32
            assert held == sum(unit.size for unit in units) // divided
            largest = max(unit.size for unit in units)
            assert {p.untyped_storage().nbytes() for p in llm.lm.parameters() if hasattr(p, '_in_unit')} == {largest}
    sharding.forget()
    dist.barrier()
    dist.destroy_process_group()


def test_processes_with_different_work(tiny_llms, tmp_path):
    half = tmp_path / 'half'  # float16 that runs in float32, although its configuration says bfloat16
    AutoModelForCausalLM.from_pretrained(tiny_llms.llama, dtype=torch.float16).save_pretrained(half)
    config = half / 'config.json'
    config.write_text(config.read_text().replace('float16', 'bfloat16'))
    context = torch.multiprocessing.get_context(warm.start_method())
    started = [context.Process(target=process, args=(rank, (tiny_llms.opt, str(half)), tmp_path)) for rank in range(4)]
    for each in started:
        each.start()
    for each in started:
        each.join(120)
        each.kill()
    assert [each.exitcode for each in started] == [0] * 4


def test_an_lm_without_layers():
    with pytest.raises(ValueError, match=r'^Linear has no layers that can be divided; leave it out$'):
        sharding.Sharding(torch.nn.Linear(2, 2), None, None, torch.device('cpu'))
