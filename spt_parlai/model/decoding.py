"""What is carried from one decoding step to the next."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass
class DecodingState:
    """R rows in mid-decoding.

    logits: [R, V] after the prefill; cache: the LM's `Cache`; mask: bool [R, T] over what the cache holds;
    scores: float32 [R, K] and selected: int64 [R], the retriever's word on each row.
    """

    logits: Tensor
    cache: Any
    mask: Tensor
    scores: Tensor
    selected: Tensor

    def extended(self, more: Tensor) -> DecodingState:
        """The same rows with `more` (bool [R, S]) columns about to enter the cache."""
        return replace(self, mask=torch.cat([self.mask, more.to(self.mask.device)], dim=1))

    def reordered(self, rows: Tensor) -> DecodingState:
        """Rows picked, repeated or re-sorted into a state of its own; this one stays as it is."""
        return DecodingState(
            self.logits[rows],
            _reorder_cache(self.cache, rows),
            self.mask[rows.to(self.mask.device)],
            self.scores[rows.to(self.scores.device)],
            self.selected[rows.to(self.selected.device)],
        )


def _reorder_cache(cache: Any, rows: Tensor) -> Any:
    """A cache with chosen rows: layers are copied shallowly, `reorder_cache` then gives each its own tensors."""
    cache = copy.copy(cache)
    cache.layers = [copy.copy(layer) for layer in cache.layers]
    cache.reorder_cache(rows)
    return cache
