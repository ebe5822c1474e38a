"""Activation checkpointing of the frozen LM, through the library's own, in eval mode."""

from __future__ import annotations

import warnings

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from spt_parlai.errors import UsageError
from spt_parlai.model.frozen_lm import FrozenLM


def recompute_activations(name: str, llm: FrozenLM, drops: bool = False) -> None:
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


def _trial(llm: FrozenLM) -> tuple[torch.Tensor, torch.Tensor]:
    """One row of eight tokens: logits [1, V] after it and their sum's gradient at the embeddings [1, 8, D]."""
    words = llm.embed(torch.arange(8)[None]).float().requires_grad_()
    logits = llm.logits_at(words, torch.tensor([7], device=words.device))
    (gradient,) = torch.autograd.grad(logits.float().square().sum(), words)
    return logits.detach(), gradient


def _refusal(name: str, llm: FrozenLM, why: str) -> UsageError:
    return UsageError(
        f'--checkpoint-activations true: --llm {name} ({type(llm.lm).__name__}) {why}; leave the option out.'
    )
