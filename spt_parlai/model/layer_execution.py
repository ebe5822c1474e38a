"""Two ways to run the LM's layers in training: recompute their activations for less memory, or compile them for speed.

Both change how the layers run and not what they compute, which a trial before and after checks.
"""

from __future__ import annotations

import os
import shutil
import warnings

import torch
from torch import Tensor

from spt_parlai.model.causal_lm import CausalLM

_COMPILERS = ('g++', 'c++', 'clang++', 'cl')


def recompute_activations(llm: CausalLM, drops: bool = False) -> None:
    """Keep only each layer's input and run the layer again in the backward pass: equal gradients for less memory.

    This is the library's own activation checkpointing, in eval mode.

    :param drops: whether the layers will have dropout, so that a layer that runs again must draw the same mask.
    :raises ValueError: for an LM that cannot do it, or that then computes something else.
    """
    layers = _layers(llm)
    if not layers or not llm.lm.supports_gradient_checkpointing:
        raise _refusal(llm, 'has no activation checkpointing; train without it')
    expected, expected_gradient = _trial(llm)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)  # newer transformers give an argument another name
        llm.lm.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={'use_reentrant': False, 'preserve_rng_state': drops}
        )
    for layer in layers:
        for key, value in vars(layer).items():
            if 'drop' in key and isinstance(value, float):  # the layer must be in training mode to be recomputed
                setattr(layer, key, 0.0)
    llm.recomputed_layers = layers
    logits, gradient = _trial(llm)
    if not (torch.equal(logits, expected) and torch.allclose(gradient, expected_gradient, rtol=1e-2, atol=1e-5)):
        raise _refusal(llm, 'computes something else with activation checkpointing; train without it')
    if not gradient.any():
        raise _refusal(llm, 'loses the gradients of the soft prompts with activation checkpointing; train without it')


def has_compiler() -> bool:
    """Whether there is a C++ compiler, without which nothing can be compiled for a CPU."""
    return any(map(shutil.which, filter(None, (os.environ.get('CXX'), *_COMPILERS))))


def compile_layers(llm: CausalLM) -> None:
    """Compile each layer with `torch.compile`, for any number of rows of any length, wherever gradients are needed.

    Decoding and evaluation run as before.

    :raises ValueError: for an LM that cannot be compiled here, or that then computes something else.
    """
    layers = _layers(llm)
    if not layers:
        raise _refusal(llm, 'has no layers that can be compiled one by one; train without compiling')
    if any(hasattr(layer, '_hf_hook') for layer in layers):
        raise _refusal(llm, 'is spread over devices; train without compiling')
    inputs = _inputs_of(layers, llm)

    def trials() -> list[tuple[Tensor, Tensor]]:
        return [_layer_trial(layer, *given) for layer, given in zip(layers, inputs, strict=True)]

    expected = trials()
    for layer in layers:
        layer.forward = _compiled_with_gradients(layer.forward)  # type: ignore[method-assign]
    try:
        compiled = trials()
    except Exception as error:  # any error of the compiler, or of the compiler that it calls
        reason = ' '.join(str(error).split('\n')[0].split())[:160]
        why = f'does not compile here ({type(error).__name__}: {reason}); train without compiling'
        raise _refusal(llm, why) from error
    # Each layer alone: from layer to layer roundings grow, in bfloat16 to a seventh of the gradient after 30 layers.
    tolerance = 1e-4 if llm.dtype == torch.float32 else 0.05
    pairs = [pair for found, wanted in zip(compiled, expected, strict=True) for pair in zip(found, wanted, strict=True)]
    if not all((a - b).norm() <= tolerance * b.norm() for a, b in pairs):
        raise _refusal(llm, 'computes something else when compiled; train without compiling')


def _compiled_with_gradients(forward):
    compiled = torch.compile(forward, dynamic=True)

    def call(*args, **kwargs):
        return (compiled if torch.is_grad_enabled() else forward)(*args, **kwargs)

    return call


def _layers(llm: CausalLM) -> list[torch.nn.Module]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in llm.lm.modules() if isinstance(module, GradientCheckpointingLayer)]


def _inputs_of(layers: list[torch.nn.Module], llm: CausalLM) -> list[tuple[tuple, dict]]:
    """The positional and the named arguments of each layer in a trial."""
    given: dict[torch.nn.Module, tuple[tuple, dict]] = {}

    def keep(layer, args, kwargs):
        given[layer] = args, kwargs

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    try:
        _trial(llm)
    finally:
        for hook in hooks:
            hook.remove()
    return [given[layer] for layer in layers]


def _layer_trial(layer: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor]:
    """A layer's output in float32 [R, T, D], and the gradient of the sum of its squares at its input [R, T, D]."""
    hidden = args[0].detach().requires_grad_()
    with torch.enable_grad():
        output = layer.forward(hidden, *args[1:], **kwargs)
        output = (output[0] if isinstance(output, tuple) else output).float()
    (gradient,) = torch.autograd.grad(output.square().sum(), hidden)
    return output.detach(), gradient.float()


def _trial(llm: CausalLM) -> tuple[Tensor, Tensor]:
    """Run two rows of nine tokens.

    Returns (float32 logits [2, V] after them, the gradient of the sum of their squares at the embeddings [2, 9, D]).
    """
    words = llm.embed(torch.arange(18).view(2, 9)).float().requires_grad_()
    with torch.enable_grad():
        logits = llm.logits_at(words, torch.tensor([8, 17], device=words.device)).float()
    (gradient,) = torch.autograd.grad(logits.square().sum(), words)
    return logits.detach(), gradient


def _refusal(llm: CausalLM, why: str) -> ValueError:
    return ValueError(f'{type(llm.lm).__name__} {why}')
