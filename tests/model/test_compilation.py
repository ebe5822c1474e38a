"""Compiled layers give the same numbers for any number of rows of any length. LMs that do not compile are refused."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.families import FAMILIES, build, draw, pad, random_lm, tiny_lm
from helpers.option_groups import check_all

from spt_parlai.errors import UsageError
from spt_parlai.model.causal_lm import CausalLM
from spt_parlai.model.layer_execution import compile_layers, has_compiler, recompute_activations
from spt_parlai.objective import SptObjective
from spt_parlai.options import parlai_options

needs_compiler = pytest.mark.skipif(not has_compiler(), reason='there is no C++ compiler here')


def gradients(model, contexts, targets):
    """Loss and gradients of a step whose groups run in turn."""
    model.zero_grad()
    objective = SptObjective(lambda_contrastive=0.0)
    prediction = model(pad(contexts), pad(targets), token_loss=objective.token_loss)
    loss = objective(
        prediction.log_probs, prediction.scores, prediction.example, None, token_loss=prediction.token_loss
    ).total
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


BATCHES = [(draw(lengths, seed=1), draw([2] * len(lengths), seed=2)) for lengths in ([7, 3, 12, 5], [20], [9, 9])]


def assert_same(model, plain, batches):
    for batch in batches:
        for found, expected in zip(gradients(model, *batch), gradients(plain, *batch), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@needs_compiler
def test_the_same_numbers(monkeypatch):
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, 'simdlen', 1)  # compiles faster
    monkeypatch.setattr(inductor, 'compile_threads', 1)
    plain, model = (build(tiny_lm('llama'))[0] for _ in range(2))
    compile_layers(model.llm)
    graphs = torch._dynamo.utils.counters['stats']['unique_graphs']
    assert graphs
    assert_same(model, plain, [BATCHES[0], BATCHES[2]])
    with torch.no_grad():
        assert torch.equal(model.encoder(pad(BATCHES[0][0])).logits, plain.encoder(pad(BATCHES[0][0])).logits)
    assert (
        torch._dynamo.utils.counters['stats']['unique_graphs'] == graphs
    )  # neither other lengths nor decoding compile anew


@pytest.mark.parametrize(
    'prepare',
    [
        lambda model: setattr(model, 'prompt_chunk', 1),
        lambda model: recompute_activations(model.llm),
    ],
    ids=['prompt-chunk', 'checkpoint-activations'],
)
@pytest.mark.parametrize('family', ['llama'])
def test_with_prompts_in_chunks_and_layers_run_again(family, prepare, monkeypatch):
    """The layers are traced and differentiated as usual, without the C++ compiler."""
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='aot_eager'))
    plain, model = (build(tiny_lm(family))[0] for _ in range(2))
    compile_layers(model.llm)
    prepare(model)
    assert_same(model, plain, BATCHES)


def test_a_compiler_that_fails_is_reported(monkeypatch):
    monkeypatch.setattr(torch, 'compile', lambda forward, dynamic: lambda *args, **kwargs: 1 / 0)
    with pytest.raises(
        ValueError, match=r'LlamaForCausalLM does not compile here \(ZeroDivisionError.*; train without'
    ):
        compile_layers(CausalLM(tiny_lm('llama')))


def test_what_computes_something_else_is_refused(monkeypatch):
    monkeypatch.setattr(
        torch, 'compile', lambda forward, dynamic: lambda words, **kwargs: 1.01 * forward(words, **kwargs)
    )
    with pytest.raises(ValueError, match='computes something else when compiled; train without compiling'):
        compile_layers(CausalLM(tiny_lm('llama')))


def test_roundings_of_many_layers_are_not_something_else(monkeypatch):
    """They grow from layer to layer: SmolLM2 in bfloat16 was refused, although compiled it is nearer to float32."""

    def rounds(forward, dynamic):
        def call(words, **kwargs):
            output = forward(words, **kwargs)
            noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)) * 2**-8
            return output * (1 + noise).to(output.dtype)

        return call

    monkeypatch.setattr(torch, 'compile', rounds)
    compile_layers(CausalLM(random_lm('Llama', {**FAMILIES['llama'][1], 'num_hidden_layers': 30}).bfloat16()))


def test_without_a_compiler_training_is_refused_before_anything_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv('CXX', raising=False)
    opt = {'llm_compile': True, 'no_cuda': True, 'optimizer': 'adam', 'lr_scheduler': 'none'}
    with pytest.raises(UsageError, match='--llm-compile True: there is no C\\+\\+ compiler here'):
        parlai_options.check_training(opt)
    check_all(opt)  # evaluation compiles nothing
