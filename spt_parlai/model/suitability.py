"""Is this an LM that soft prompts, padding and cached decoding work with? Asked once, when it is loaded."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from spt_parlai.errors import UsageError
from spt_parlai.model.frozen_lm import FrozenLM, input_device

NEEDED = ('inputs_embeds', 'attention_mask', 'past_key_values')
WITHOUT_POSITIONS = ('bloom', 'mpt')  # ALiBi: distances alone count, and padding changes none
TRIAL = ((0, 1, 2), (0, 1, 3))  # token ids; the rows differ in their last token alone
TOLERANCE = 0.05  # of the largest logit: far above rounding in any dtype, far below what another input makes
WAY_OUT = 'choose a decoder-only attention model such as an OPT, a Llama or a GPT-2.'


def check_class(llm: str, lm: torch.nn.Module) -> None:
    """Refuse what cannot work by its class alone.

    :raises UsageError: naming `llm` and what it lacks.
    """
    parameters = inspect.signature(lm.forward).parameters
    lacking = [name for name in NEEDED if name not in parameters]
    if 'position_ids' not in parameters and lm.config.model_type not in WITHOUT_POSITIONS:
        lacking.append('position_ids')
    if lm.get_output_embeddings() is None:
        raise _refusal(llm, lm, 'has no output projection, so it is no causal LM for this method')
    if getattr(lm, '_is_stateful', False):
        raise _refusal(llm, lm, 'is recurrent, and its state cannot be searched like a key-value cache')
    if lacking:
        raise _refusal(llm, lm, f'takes no {", ".join(lacking)}, which soft prompts and cached decoding need')


def freeze(llm: str, lm: torch.nn.Module) -> FrozenLM:
    """A suitable LM, frozen; it is run on two rows of three tokens to see that it is one.

    :raises UsageError: for an LM that fails from embeddings, or computes there what it does not from token ids.
    """
    check_class(llm, lm)
    lm.eval()
    ids = torch.tensor(TRIAL, device=input_device(lm))
    try:
        with torch.no_grad():
            plain = lm(input_ids=ids).logits  # [2, 3, V]
            frozen = FrozenLM(lm)
            words = frozen.embed(ids)
            rows = torch.cat([words, words.mean(0, keepdim=True)])  # the third is of no words, as a soft prompt is
            last, cache = frozen.prefill(
                rows, torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
            )  # [3, V]
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise _refusal(llm, lm, f'does not run from input embeddings ({reason})') from error
    if _differ(plain[0, :2], plain[1, :2]):
        raise _refusal(llm, lm, 'looks ahead at later tokens, so it is no causal LM')
    if _differ(last[:2], plain[:, -1]):
        raise _refusal(llm, lm, 'computes something else from word embeddings than from words')
    if type(cache) is not DynamicCache or not all(map(_is_key_value, cache.layers)):
        raise _refusal(llm, lm, 'keeps no plain key-value cache that a search could reorder')
    return frozen


def _differ(a: Tensor, b: Tensor) -> bool:
    return bool((a.float() - b.float().to(a.device)).abs().max() > TOLERANCE * a.float().abs().max())


def _is_key_value(layer) -> bool:
    return isinstance(layer, DynamicLayer) and not hasattr(layer, 'recurrent_states')


def _refusal(llm: str, lm: torch.nn.Module, why: str) -> UsageError:
    return UsageError(f'--llm {llm}: {type(lm).__name__} {why}; {WAY_OUT}')
