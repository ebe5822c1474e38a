"""Activation checkpointing of the frozen LM, through the library's own, in eval mode.

The LM's layers compiled for training by `torch.compile`.
"""

from __future__ import annotations

import os
import shutil
import warnings

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from spt_parlai.errors import UsageError
from spt_parlai.model.causal_lm import CausalLM


def recompute_activations(name: str, llm: CausalLM, drops: bool = False) -> None:
    """Keep only each layer's input and run the layer again in the backward pass: equal gradients for less memory.

    :param name: the LM as the user named it, for messages.
    :param drops: will layers have dropout? Run again, they must draw the same.
    :raises UsageError: for an LM that cannot, or that would compute something else.
    """
    layers = [module for module in llm.lm.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers or not llm.lm.supports_gradient_checkpointing:
        raise _refusal(name, llm, 'has no activation checkpointing')
    plain = _trial(llm)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)  # a new name in newer transformers
        llm.lm.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={'use_reentrant': False, 'preserve_rng_state': drops}
        )
    for layer in layers:
        for key, value in vars(layer).items():
            if 'drop' in key and isinstance(value, float):  # a training layer would drop; it must not
                setattr(layer, key, 0.0)
    llm.recomputed_layers = layers
    (logits, gradient), (expected, expected_gradient) = _trial(llm), plain
    if not (torch.equal(logits, expected) and torch.allclose(gradient, expected_gradient, rtol=1e-2, atol=1e-5)):
        raise _refusal(name, llm, 'computes something else with activation checkpointing')
    if not gradient.any():
        raise _refusal(name, llm, 'loses the gradients of the soft prompts with activation checkpointing')


def _trial(llm: CausalLM) -> tuple[torch.Tensor, torch.Tensor]:
    """One row of eight tokens: logits [1, V] after it and their sum's gradient at the embeddings [1, 8, D]."""
    words = llm.embed(torch.arange(8)[None]).float().requires_grad_()
    logits = llm.logits_at(words, torch.tensor([7], device=words.device))
    (gradient,) = torch.autograd.grad(logits.float().square().sum(), words)
    return logits.detach(), gradient


def _refusal(name: str, llm: CausalLM, why: str) -> UsageError:
    return UsageError(
        f'--checkpoint-activations true: --llm {name} ({type(llm.lm).__name__}) {why}; leave the option out.'
    )


_COMPILERS = ('g++', 'c++', 'clang++', 'cl')


def has_compiler() -> bool:
    """Is there the C++ compiler without which nothing is compiled for a CPU?"""
    return any(map(shutil.which, filter(None, (os.environ.get('CXX'), *_COMPILERS))))


def compile_layers(name: str, llm: CausalLM) -> None:
    """Compile each layer, for any number of rows of any length, where gradients are wanted; decoding and evaluation run as they did.

    :param name: the LM as the user named it, for messages.
    :raises UsageError: for an LM that cannot be compiled here, or that would compute something else.
    """
    layers = [module for module in llm.lm.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers or any(hasattr(layer, '_hf_hook') for layer in layers):
        raise _compile_refusal(
            name, llm, 'has no layers that can be compiled one by one' if not layers else 'is spread over devices'
        )
    plain = _compile_trial(llm)
    for layer in layers:
        layer.forward = _compiled_with_gradients(layer.forward)
    try:
        compiled = _compile_trial(llm)
    except Exception as error:  # whatever the compiler, or the one it calls, stumbles over
        reason = ' '.join(str(error).split('\n')[0].split())[:160]
        raise _compile_refusal(name, llm, f'does not compile here ({type(error).__name__}: {reason})') from error
    tolerance = 1e-4 if llm.dtype == torch.float32 else 0.1
    if not all((a - b).norm() <= tolerance * b.norm() for a, b in zip(compiled, plain, strict=True)):
        raise _compile_refusal(name, llm, 'computes something else when compiled')


def _compiled_with_gradients(forward):
    compiled = torch.compile(forward, dynamic=True)

    def call(*args, **kwargs):
        return (compiled if torch.is_grad_enabled() else forward)(*args, **kwargs)

    return call


def _compile_trial(llm: CausalLM) -> tuple[Tensor, Tensor]:
    """Two rows of nine tokens: float32 logits [2, V] after them and their squares' gradient at the embeddings [2, 9, D]."""
    words = llm.embed(torch.arange(18).view(2, 9)).float().requires_grad_()
    with torch.enable_grad():
        logits = llm.logits_at(words, torch.tensor([8, 17], device=words.device)).float()
    (gradient,) = torch.autograd.grad(logits.square().sum(), words)
    return logits.detach(), gradient


def _compile_refusal(name: str, llm: CausalLM, why: str) -> UsageError:
    return UsageError(f'--llm-compile true: --llm {name} ({type(llm.lm).__name__}) {why}; leave the option out.')
