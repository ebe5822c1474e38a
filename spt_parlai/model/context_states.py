"""One prefill for many contexts: what a pass over shared rows leaves to decode from, for each example.

A context is the beginning of its row. Attention is causal, so the beginning of the row's cache is the context's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spt_parlai.model.decoding import DecodingState

_TOKENS_AT_ONCE = 8192  # of the caches in one batch, padding included; no more rows are faster on a CPU


class _Place(NamedTuple):
    """Where an example's cache begins: its row in a part, and its length with the soft prompt."""

    part: int
    row: int
    length: int
    logits: Tensor


class ContextStates:
    """The states of B examples after their contexts, each under the prompt that it selected.

    :param scores: float32 [B, K] and selected: int64 [B], of the examples.
    """

    def __init__(self, scores: Tensor, selected: Tensor):
        self.scores, self.selected = scores, selected
        self._parts: list[list[tuple[Tensor, Tensor]]] = []  # the (keys, values) of every layer
        self._places: dict[int, _Place] = {}

    def keep(self, cache: Any, examples: Tensor, rows: Tensor, lengths: Tensor, logits: Tensor) -> None:
        """Keep the rows of a cache that hold the contexts of some examples.

        examples, rows, lengths: int64 [m], rows of the cache; logits [m, V], those after the contexts.
        """
        used, row = rows.unique(return_inverse=True)
        self._parts.append(
            [
                (layer.keys[used.to(layer.keys.device)], layer.values[used.to(layer.values.device)])
                for layer in cache.layers
            ]
        )
        of_part = zip(examples.tolist(), row.tolist(), lengths.tolist(), logits, strict=True)
        self._places |= {i: _Place(len(self._parts) - 1, *place) for i, *place in of_part}

    def batches(self) -> list[list[int]]:
        """Which examples are decoded together: those of similar length, the longest first."""
        batches: list[list[int]] = []
        for i in sorted(self._places, key=lambda i: -self._places[i].length):
            if batches and (len(batches[-1]) + 1) * self._places[batches[-1][0]].length <= _TOKENS_AT_ONCE:
                batches[-1].append(i)
            else:
                batches.append([i])
        return batches

    def of(self, examples: Sequence[int]) -> DecodingState:
        """The state of some examples, as `PromptedLM.encoder` would compute it: padding on the left."""
        from spt_parlai.model.kv_cache import merge_beginnings  # transformers takes seconds to import

        places = [self._places[i] for i in examples]
        lengths = [place.length for place in places]
        cache = merge_beginnings(self._parts, [(place.part, place.row, place.length) for place in places])
        logits = torch.stack([place.logits for place in places])
        columns = torch.arange(max(lengths), device=logits.device)
        mask = columns >= max(lengths) - torch.tensor(lengths, device=logits.device)[:, None]
        numbers = torch.tensor(examples, device=self.selected.device)
        return DecodingState(logits, cache, mask, self.scores[numbers], self.selected[numbers])
