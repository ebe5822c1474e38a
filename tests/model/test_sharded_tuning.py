"""Shares that train, in four processes that share one start: gradients, norms, and what of them is saved."""

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import warm
from transformers import OPTConfig, OPTForCausalLM

from spt_parlai.agents import sharded_states
from spt_parlai.errors import UsageError
from spt_parlai.model import sharding
from spt_parlai.model.adapters import tune_all
from spt_parlai.model.loading import load_llm
from spt_parlai.model.sharded_tuning import TunedShares

WORLD = 4
CLOSE = {'rtol': 1e-5, 'atol': 1e-7}


def loss(llm, seed):
    """That of two rows of nine tokens."""
    ids = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(seed))
    return llm.logits_at(llm.embed(ids), torch.tensor([8, 17])).square().mean()


def states_of(optimizer, tuned):
    names = list(tuned.names) if isinstance(tuned, TunedShares) else [n for n, _ in tuned.named_parameters()]
    weights = {f'tuned.{name}': tensor for name, tensor in tuned.state_dict().items()}
    gradients = [parameter.grad for parameter in tuned.parameters()]
    states = {'optimizer': optimizer.state_dict(), 'accumulated': {'batches': 1, 'gradients': gradients}}
    return {**states, 'model': weights or dict.fromkeys(f'tuned.{name}' for name in names)}


def check_steps(rank, llm, whole):
    """Three updates, to which each process contributes one pass more than the one before it.

    Returns (the shares, what of them is saved; the weights of the whole LLM, what of them is saved).
    """
    tuned, weights = TunedShares(llm, sharding.of(llm.lm)), tune_all(whole)
    optimizers = [torch.optim.AdamW(module.parameters(), lr=1e-2, eps=1e-4) for module in (tuned, weights)]
    held = sum(parameter.numel() for parameter in tuned.parameters())
    assert held < sum(parameter.numel() for parameter in weights.parameters()) * 0.8
    for step in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        for other in range(WORLD):
            for seed in range(other + 1):
                (loss(whole, 100 * step + 10 * other + seed) / WORLD).backward()
        for seed in range(rank + 1):
            loss(llm, 100 * step + 10 * rank + seed).backward()
        tuned.complete_gradients()
        expected = torch.nn.utils.get_total_norm([parameter.grad for parameter in weights.parameters()])
        torch.testing.assert_close(tuned.gradient_norm(), expected)
        if step < 2:  # the last gradients are saved instead, in the middle of an update
            for optimizer in optimizers:
                optimizer.step()
            tuned.updated()
    found, expected = states_of(optimizers[0], tuned), states_of(optimizers[1], weights)
    if rank == 0:
        assert list(found['model']) == list(expected['model'])
        torch.testing.assert_close(found['model'], expected['model'], **CLOSE)
    else:
        assert set(found['model'].values()) == {None}
    return tuned, found, weights, expected


def assert_states(found, expected):
    for key in expected['optimizer']['state']:
        torch.testing.assert_close(found['optimizer']['state'][key], expected['optimizer']['state'][key], **CLOSE)
    assert len(found['optimizer']['state']) == len(expected['optimizer']['state'])
    torch.testing.assert_close(found['accumulated']['gradients'], expected['accumulated']['gradients'], **CLOSE)


def process(rank, llms, folder):
    torch.set_num_threads(1)
    socket.gethostname = lambda: f'machine {rank // 2}'
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', world_size=WORLD, rank=rank)
    for kind, path in zip(('full', 'hybrid', 'full'), llms, strict=True):
        tuned, found, weights, expected = check_steps(rank, load_llm(path, sharding=kind), load_llm(path))
        expected = {**expected, 'model': {f'tuned.{name}': tensor for name, tensor in weights.state_dict().items()}}
        model_file = Path(folder, f'{kind}-{Path(path).name}')
        left = sharded_states.move_to_folder(found, tuned, Path(f'{model_file}.shards'))
        dist.barrier()
        small = [value for state in left['optimizer']['state'].values() for value in state.values()]
        assert {tensor.numel() for tensor in small} == {1} and set(left['accumulated']['gradients']) == {None}
        left['model'] = expected['model']
        assert_states(sharded_states.for_shares(model_file, left, tuned), found)
        assert_states(sharded_states.for_whole_weights(model_file, left), expected)
        assert_states(sharded_states.for_shares(model_file, expected, tuned), found)
        tuned.load_state_dict({name: tensor + 1 for name, tensor in weights.state_dict().items()})
        again = tuned.state_dict()
        assert all(torch.equal(tensor, weights.state_dict()[name] + 1) for name, tensor in again.items())
        left['shards'] = {**left['shards'], 'places': {}}
        with pytest.raises(UsageError, match='is damaged .its weights have other places'):
            sharded_states.for_shares(model_file, left, tuned)
    sharding.forget()
    dist.barrier()
    dist.destroy_process_group()


def test_processes_with_different_work(tiny_llms, tmp_path):
    """Around a head with the words' weights and one without, and with an input projection."""
    sizes = {'num_hidden_layers': 2, 'num_attention_heads': 2, 'max_position_embeddings': 32}
    config = OPTConfig(vocab_size=60, hidden_size=16, word_embed_proj_dim=8, ffn_dim=32, **sizes)
    OPTForCausalLM(config).save_pretrained(tmp_path / 'projected')
    context = torch.multiprocessing.get_context(warm.start_method())
    llms = (tiny_llms.opt, tiny_llms.llama, str(tmp_path / 'projected'))
    started = [context.Process(target=process, args=(rank, llms, tmp_path)) for rank in range(WORLD)]
    for each in started:
        each.start()
    for each in started:
        each.join(120)
        each.kill()
    assert [each.exitcode for each in started] == [0] * WORLD
