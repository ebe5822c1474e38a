"""A causal LM driven by input embeddings, frozen unless `tuning` lets weights of it train; the projection to the vocabulary
only where it is asked for.

Deliberately not a `torch.nn.Module`: what holds it can be trained, halved, moved, saved and synchronised between
processes without ever touching, or even seeing, a weight of the LM.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from contextlib import contextmanager
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from spt_parlai.model.kv_cache import can_merge, merge, parts_to_prefill
from spt_parlai.model.target_log_probs import token_log_probs

SHAPE_KEYS = ('model_type', 'hidden_size', 'num_hidden_layers', 'num_attention_heads', 'vocab_size')


def input_device(lm: torch.nn.Module) -> torch.device:
    """Where inputs go: the embedding's device, or where accelerate runs it."""
    embedding = lm.get_input_embeddings()
    execution = getattr(getattr(embedding, '_hf_hook', None), 'execution_device', None)
    return torch.device(execution) if execution is not None else embedding.weight.device


def original_shape(parameter: torch.nn.Parameter) -> list[int]:
    """A weight's shape before 4-bit quantization packed it."""
    packed = getattr(parameter, 'quant_state', None)
    return list(parameter.shape if packed is None else packed.shape)


class CausalLM:
    """Wraps a `…ForCausalLM`.

    :param lm: the Hugging Face model; its parameters stop requiring gradients and it stays in eval mode.
    """

    def __init__(self, lm: torch.nn.Module):
        self.lm = lm.eval()
        for parameter in self.lm.parameters():
            parameter.requires_grad_(False)
        self._take_input_projection()
        config = lm.config.get_text_config(decoder=True)
        shapes = sorted((name, original_shape(p)) for name, p in lm.named_parameters())
        digest = hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]
        self._fingerprint = {**{k: getattr(config, k, None) for k in SHAPE_KEYS}, 'shapes': digest}
        self._positions: Tensor | None = None
        self._hidden: list[Tensor] | None = None
        self._merges_caches = True  # until the first cache shows that it cannot be
        self.recomputed_layers: list[torch.nn.Module] = []  # see `recomputation`
        self.lm.get_output_embeddings().register_forward_pre_hook(self._select_positions)
        self._takes_positions = 'position_ids' in inspect.signature(self.lm.forward).parameters

    def _take_input_projection(self) -> None:
        """OPT-350m projects word embeddings (512) to its width (1024) inside the body; soft prompts are of the body's
        width, so the projection is taken out of the body and applied in `embed` instead."""
        self._project_in = None
        for module in self.lm.modules():
            if getattr(module, 'project_in', None) is not None:
                self._project_in, module.project_in = module.project_in, None
                return

    def _select_positions(self, _head, args: tuple) -> tuple:
        """Before the output projection: hidden states [R, T, D] → [1, N, D] at the wanted flat positions; none of them where
        the hidden states themselves are wanted."""
        if self._positions is None:
            return args
        hidden = args[0]
        chosen = hidden.reshape(-1, hidden.shape[-1])[self._positions.to(hidden.device)].unsqueeze(0)
        if self._hidden is not None:
            self._hidden.append(chosen[0])
            chosen = chosen[:, :0]
        return (chosen, *args[1:])

    @contextmanager
    def _only_at(self, positions: Tensor | None):
        self._positions = positions
        try:
            yield
        finally:
            self._positions = None

    @contextmanager
    def _recomputing(self, wanted: bool):
        """The library checkpoints a layer only where the layer says that it is training."""
        for layer in self.recomputed_layers:
            layer.training = wanted
        try:
            yield
        finally:
            for layer in self.recomputed_layers:
                layer.training = False

    # ---- shapes ---------------------------------------------------------------------------------------

    @property
    def hidden_size(self) -> int:
        """D: the width of the body, and of soft prompts."""
        return self._project_in.weight.shape[0] if self._project_in is not None else self._embedding.weight.shape[-1]

    @property
    def word_size(self) -> int:
        """Width of the word embeddings: D, unless an input projection follows them."""
        return self._embedding.weight.shape[-1]

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(original_shape(p)) for p in self.lm.parameters())

    @property
    def _embedding(self) -> torch.nn.Module:
        return self.lm.get_input_embeddings()

    @property
    def dtype(self) -> torch.dtype:
        weight = self._embedding.weight
        return weight.dtype if weight.dtype.is_floating_point else self.lm.dtype

    @property
    def device(self) -> torch.device:
        return input_device(self.lm)

    def fingerprint(self) -> dict:
        """The LLM's shape as it was loaded, stored with every checkpoint: sizes by name, and a digest of all weights' shapes."""
        return dict(self._fingerprint)

    def named_weights(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Every weight once, by name."""
        taken = [] if self._project_in is None else self._project_in.named_parameters(prefix='project_in')
        return [*self.lm.named_parameters(), *taken]

    @property
    def trains(self) -> bool:
        """Does a weight of the LM train?"""
        return any(p.requires_grad for p in self.lm.parameters())

    # ---- computation ----------------------------------------------------------------------------------

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings [..., T] → [..., T, D] in the LM's dtype, after its own input projection (eq. 1)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._embedding.weight.requires_grad):
            embedded = self._embedding(ids.to(self.device))
            return embedded if self._project_in is None else self._project_in(embedded)

    def logits_at(self, embeddings: Tensor, positions: Tensor) -> Tensor:
        """Logits that follow chosen positions of whole rows.

        embeddings: [R, T, D], any padding on the right, where causal attention never looks: no mask is needed, and attention
        without one has faster kernels; positions: int64 [N], flat indices into R × T. Returns logits [N, V] in the LM's dtype;
        their gradient reaches `embeddings` and what of the LM trains.
        """
        with self._only_at(positions), self._recomputing(self._keeps_graph(embeddings)):
            return self._forward(embeddings, None, use_cache=False).logits[0]

    def log_probs_at(self, embeddings: Tensor, positions: Tensor, targets: Tensor, wanted: Tensor):
        """Log-probabilities of tokens at chosen positions of whole rows (see `logits_at`), never all logits at once.

        targets: int64 [N], the tokens; wanted: bool [N], where the likeliest token is asked for. Returns
        (float32 [N], int64 [N], 0 where not wanted).
        """
        if not self.projects_apart:
            logits = self.logits_at(embeddings, positions).float()
            likeliest = torch.zeros_like(targets)
            likeliest[wanted] = logits.detach()[wanted].argmax(-1)
            return -F.cross_entropy(logits, targets, reduction='none'), likeliest
        head = self.lm.get_output_embeddings()
        hidden = self._hidden_at(embeddings, positions)
        return token_log_probs(hidden, head.weight, head.bias, targets.to(hidden.device), wanted.to(hidden.device))

    def _hidden_at(self, embeddings: Tensor, positions: Tensor) -> Tensor:
        """What the output projection gets at chosen positions, [N, D]."""
        self._hidden = []
        try:
            with self._only_at(positions), self._recomputing(self._keeps_graph(embeddings)):
                self._forward(embeddings, None, use_cache=False)
            return self._hidden[0]
        finally:
            self._hidden = None

    def _keeps_graph(self, embeddings: Tensor) -> bool:
        return torch.is_grad_enabled() and (embeddings.requires_grad or self.trains)

    @property
    def projects_apart(self) -> bool:
        """Can log-probabilities be made from hidden states, in chunks? Where the projection is linear and does not train."""
        return self.head_is_linear and not self.lm.get_output_embeddings().weight.requires_grad

    @cached_property
    def head_is_linear(self) -> bool:
        """Are the logits the projection's alone (no cap or scale comes after it), and is its weight here?"""
        head = self.lm.get_output_embeddings()
        if type(head) is not torch.nn.Linear or head.weight.is_meta or hasattr(head, '_hf_hook'):
            return False
        with torch.no_grad():
            words = self.embed(torch.tensor([[0, 1]]))
            position = torch.tensor([1], device=words.device)
            return torch.equal(self.logits_at(words, position), head(self._hidden_at(words, position)))

    def prefill(self, embeddings: Tensor, mask: Tensor):
        """Run left-padded rows once. embeddings [R, T, D], mask bool [R, T] → (logits [R, V] at the last position, cache).

        Rows of like length run together where the LM's cache can be put together again.
        """
        parts = parts_to_prefill(mask) if self._merges_caches else [(list(range(len(mask))), mask.shape[1])]
        found = []
        for rows, length in parts:
            found.append(self._prefill(embeddings[rows, -length:], mask[rows, -length:]))
            if self._merges_caches and not can_merge(found[-1][1]):
                self._merges_caches = False
                return self._prefill(embeddings, mask)
        if not self._merges_caches:
            return found[0]
        order = torch.tensor([row for rows, _ in parts for row in rows], device=found[0][0].device)
        return torch.cat([logits for logits, _ in found])[order.argsort()], merge([cache for _, cache in found], parts)

    def _prefill(self, embeddings: Tensor, mask: Tensor):
        rows, length = mask.shape
        last = torch.arange(1, rows + 1, device=mask.device) * length - 1
        with self._only_at(last):
            output = self._forward(embeddings, mask, use_cache=True)
        return output.logits[0], output.past_key_values

    def decode(self, ids: Tensor, mask: Tensor, cache):
        """Continue cached rows. ids int64 [R, S]; mask bool [R, T + S] over cache and ids → (logits [R, S, V], cache)."""
        output = self._forward(self.embed(ids), mask, use_cache=True, cache=cache)
        return output.logits, output.past_key_values

    def _forward(self, embeddings: Tensor, mask: Tensor | None, use_cache: bool, cache=None):
        kwargs = {}
        if self._takes_positions and mask is None:
            kwargs['position_ids'] = torch.arange(embeddings.shape[1], device=embeddings.device).expand(
                embeddings.shape[:2]
            )
        elif self._takes_positions:  # counted over real positions only, so padding on either side changes nothing
            kwargs['position_ids'] = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
        if cache is not None:
            kwargs['past_key_values'] = cache
        return self.lm(
            inputs_embeds=embeddings.to(self.dtype),
            attention_mask=None if mask is None else mask.long(),
            use_cache=use_cache,
            **kwargs,
        )
