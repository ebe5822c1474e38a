"""A causal LM that runs on input embeddings, frozen unless `adapters` lets some of its weights train.

Its logits are computed only at the positions that are asked for. Where the head is linear, the body runs alone and the
head follows at those positions; otherwise the LM's own forward pass computes the logits of the columns that hold them.

`CausalLM` is deliberately not a `torch.nn.Module`: whatever holds it can be trained, cast, moved, saved and
synchronised between processes without ever touching a weight of the LM.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spt_parlai.model.attention import attend_by_products
from spt_parlai.model.sharding import need
from spt_parlai.model.target_log_probs import token_log_probs

SHAPE_KEYS = ('model_type', 'hidden_size', 'num_hidden_layers', 'num_attention_heads', 'vocab_size')

HuggingFaceLM = Any
"""A `…ForCausalLM` of transformers. Its attributes depend on the architecture, so type checkers cannot follow them."""


class TargetLogProbs(NamedTuple):
    """Of N targets: log_probs float32 [N]; likeliest int64 [N], the likeliest tokens, 0 where they are not wanted.

    logits [m, V] in the LM's dtype and cache: what continues the rows, where that was asked for.
    """

    log_probs: Tensor
    likeliest: Tensor
    logits: Tensor | None
    cache: Any


def input_device(lm: HuggingFaceLM) -> torch.device:
    """The device that inputs belong on: where accelerate runs the word embedding, or else where its weight is."""
    embedding = lm.get_input_embeddings()
    execution = getattr(getattr(embedding, '_hf_hook', None), 'execution_device', None)
    return torch.device(execution) if execution is not None else embedding.weight.device


def original_shape(parameter: torch.nn.Parameter) -> list[int]:
    """A weight's shape before 4-bit quantization packed it."""
    packed = getattr(parameter, 'quant_state', None)
    return list(parameter.shape if packed is None else packed.shape)


class CausalLM:
    """A Hugging Face LM as the method uses it: from embeddings to logits or log-probabilities.

    :param lm: its parameters stop requiring gradients, and it stays in eval mode.
    """

    def __init__(self, lm: HuggingFaceLM):
        attend_by_products()
        self.lm = lm.eval()
        for parameter in self.lm.parameters():
            parameter.requires_grad_(False)
        self._take_input_projection()
        config = lm.config.get_text_config(decoder=True)
        shapes = sorted((name, original_shape(p)) for name, p in lm.named_parameters())
        digest = hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]
        self._fingerprint = {**{k: getattr(config, k, None) for k in SHAPE_KEYS}, 'shapes': digest}
        self.recomputed_layers: Sequence[torch.nn.Module] = []  # see `layer_execution`
        parameters = inspect.signature(self.lm.forward).parameters
        self._takes_positions = 'position_ids' in parameters
        self._keeps_columns = 'logits_to_keep' in parameters

    def _take_input_projection(self) -> None:
        """Take OPT-350m's projection of word embeddings (512 → 1024) out of the body, where `embed` applies it instead.

        Soft prompts have the body's width and must not be projected.
        """
        self._project_in = None
        for module in self.lm.modules():
            if getattr(module, 'project_in', None) is not None:
                self._project_in, module.project_in = module.project_in, None
                return

    # ---- shapes ---------------------------------------------------------------------------------------

    @property
    def hidden_size(self) -> int:
        """D, the width of the body and of soft prompts."""
        return self.word_size if self._project_in is None else self._project_in.weight.shape[0]

    @property
    def word_size(self) -> int:
        """The width of the word embeddings: D, unless an input projection follows them."""
        return self._embedding.weight.shape[-1]

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(original_shape(p)) for p in self.lm.parameters())

    @property
    def end_ids(self) -> list[int]:
        """The tokens at which the LM's own generation ends: none, one, or several, as for LMs that chat."""
        ends = getattr(getattr(self.lm, 'generation_config', None), 'eos_token_id', None)
        return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)

    @property
    def _embedding(self) -> Any:
        return self.lm.get_input_embeddings()

    @property
    def dtype(self) -> torch.dtype:
        weight = self._embedding.weight
        return weight.dtype if weight.dtype.is_floating_point else self.lm.dtype

    @property
    def device(self) -> torch.device:
        return input_device(self.lm)

    def fingerprint(self) -> dict:
        """The LM's sizes when it was loaded and a digest of all weights' shapes, stored with every checkpoint."""
        return dict(self._fingerprint)

    def named_weights(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Every weight once, with its name."""
        taken = [] if self._project_in is None else self._project_in.named_parameters(prefix='project_in')
        return [*self.lm.named_parameters(), *taken]

    # ---- computation ----------------------------------------------------------------------------------

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings [..., T] → [..., T, D] in the LM's dtype, after its own input projection (eq. 1)."""
        embedding = self._embedding
        with torch.set_grad_enabled(torch.is_grad_enabled() and embedding.weight.requires_grad):
            embedded = embedding(ids.to(self.device))
            return embedded if self._project_in is None else self._project_in(embedded)

    @cached_property
    def keeps_caches(self) -> bool:
        """Whether a cache has a key and a value for every position of every row, so that its rows can be cut."""
        from spt_parlai.model.kv_cache import forgets_nothing

        return forgets_nothing(self.lm.config)

    def logits_at(self, embeddings: Tensor, positions: Tensor) -> Tensor:
        """The logits of the tokens that follow chosen positions.

        embeddings: [R, T, D], padded on the right only. Causal attention never looks there, so the rows need no mask,
        and attention without a mask has faster kernels. positions: int64 [N], flat indices into R × T. Returns [N, V]
        in the LM's dtype; the gradient reaches `embeddings` and the weights of the LM that train.
        """
        return self._logits_at(embeddings, positions)[0]

    def log_probs_at(
        self, embeddings: Tensor, positions: Tensor, targets: Tensor, wanted: Tensor, continued: Tensor | None = None
    ) -> TargetLogProbs:
        """Log-probabilities of target tokens at chosen positions (see `logits_at`).

        Where the head allows it (see `can_chunk_logits`), only some of the logits are held at a time. targets: int64
        [N]; wanted: bool [N], where the likeliest token is needed; continued: int64 [m], which of the positions have
        their logits kept, and then the cache is, too.
        """
        if self.can_chunk_logits:
            hidden, cache = self._hidden_at(embeddings, positions, use_cache=continued is not None)
            head, device = self.lm.get_output_embeddings(), hidden.device
            need(head)
            found = token_log_probs(hidden, head.weight, head.bias, targets.to(device), wanted.to(device))
            return TargetLogProbs(*found, None if continued is None else head(hidden[continued.to(device)]), cache)
        logits, cache = self._logits_at(embeddings, positions, use_cache=continued is not None)
        likeliest = torch.zeros_like(targets)
        likeliest[wanted] = logits.detach()[wanted].float().argmax(-1)
        log_probs = -F.cross_entropy(logits.float(), targets, reduction='none')
        return TargetLogProbs(log_probs, likeliest, None if continued is None else logits[continued], cache)

    def prefill(self, embeddings: Tensor, mask: Tensor):
        """Run left-padded rows once. embeddings [R, T, D], mask bool [R, T] → (the last logits [R, V], cache).

        Rows of similar length run together if their caches can be merged afterwards; otherwise all rows do.
        """
        from spt_parlai.model.kv_cache import can_merge, merge, parts_to_prefill  # transformers takes seconds to import

        if not self.keeps_caches:
            return self._prefill(embeddings, mask)
        parts, logits, caches = parts_to_prefill(mask), [], []
        for rows, length in parts:
            last, cache = self._prefill(embeddings[rows, -length:], mask[rows, -length:])
            if not can_merge(cache):
                self.keeps_caches = False
                return self._prefill(embeddings, mask)
            logits.append(last)
            caches.append(cache)
        order = torch.tensor([row for rows, _ in parts for row in rows], device=logits[0].device)
        return torch.cat(logits)[order.argsort()], merge(caches, parts)

    def _prefill(self, embeddings: Tensor, mask: Tensor):
        rows, length = mask.shape
        last = torch.arange(1, rows + 1, device=mask.device) * length - 1
        return self._logits_at(embeddings, last, mask, use_cache=True)

    def decode(self, ids: Tensor, mask: Tensor, cache):
        """Continue cached rows. ids int64 [R, S], mask bool [R, T + S] of cache and ids → (logits [R, S, V], cache)."""
        output = self._forward(self.lm, self.embed(ids), mask, use_cache=True, past_key_values=cache)
        return output.logits, output.past_key_values

    # ---- body and head --------------------------------------------------------------------------------

    @property
    def can_chunk_logits(self) -> bool:
        """Whether log-probabilities can be computed in chunks, which needs a linear head that does not train."""
        return self.head_is_linear and not self.lm.get_output_embeddings().weight.requires_grad

    @cached_property
    def head_is_linear(self) -> bool:
        """Whether the logits are a linear layer of the body's output, neither capped nor scaled; one trial shows it.

        It is false, too, where accelerate moves the layer's weight between devices.
        """
        head = self.lm.get_output_embeddings()
        if type(head) is not torch.nn.Linear or head.weight.is_meta or hasattr(head, '_hf_hook'):
            return False
        with torch.no_grad():
            words = self.embed(torch.tensor([[0, 1]]))
            hidden = getattr(self._forward(self.lm.base_model, words), 'last_hidden_state', None)
            if hidden is None or hidden.shape[-1] != head.in_features:
                return False
            return torch.equal(head(hidden).float(), self._forward(self.lm, words).logits.float())

    def _logits_at(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None = None, use_cache: bool = False):
        """Return (logits [N, V] at flat positions, the cache if one is used)."""
        if self.head_is_linear:
            hidden, cache = self._hidden_at(embeddings, positions, mask, use_cache)
            return self.lm.get_output_embeddings()(hidden), cache
        rows, columns = positions // embeddings.shape[1], positions % embeddings.shape[1]
        keep = {}
        if self._keeps_columns:
            kept, columns = columns.unique(return_inverse=True)
            keep['logits_to_keep'] = kept.tolist()  # a list: the LM's last layer may be on another device
        output = self._forward(self.lm, embeddings, mask, use_cache, **keep)
        return output.logits[rows.to(output.logits.device), columns.to(output.logits.device)], output.past_key_values

    def _hidden_at(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None = None, use_cache: bool = False):
        """Return (the input of a linear head at flat positions, [N, D], the cache if one is used)."""
        output = self._forward(self.lm.base_model, embeddings, mask, use_cache)
        hidden = output.last_hidden_state.flatten(0, 1)
        return hidden[positions.to(hidden.device)], output.past_key_values

    def _forward(self, module, embeddings: Tensor, mask: Tensor | None = None, use_cache: bool = False, **kwargs):
        """The output of the LM, or of its body, for embeddings [R, T, D]."""
        if self._takes_positions and mask is None:
            positions = torch.arange(embeddings.shape[1], device=embeddings.device)
            kwargs['position_ids'] = positions.expand(embeddings.shape[:2])
        elif self._takes_positions and mask is not None:
            # Positions are counted over real tokens only, so that padding changes nothing.
            kwargs['position_ids'] = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
        if self.recomputed_layers and not use_cache and torch.is_grad_enabled():
            training = embeddings.requires_grad or any(p.requires_grad for p in self.lm.parameters())
            for layer in self.recomputed_layers:
                layer.training = training  # otherwise the library does not recompute the layer
        if use_cache and self.keeps_caches and 'past_key_values' not in kwargs:
            from spt_parlai.model.kv_cache import empty_cache

            kwargs['past_key_values'] = empty_cache()
        try:
            return module(
                inputs_embeds=embeddings.to(self.dtype),
                attention_mask=None if mask is None else mask.long(),
                use_cache=use_cache,
                **kwargs,
            )
        finally:
            for layer in self.recomputed_layers:
                layer.training = False
