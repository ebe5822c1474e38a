"""Prefill rows of different lengths without computing their padding, into a cache that grows without copies.

Rows of similar length run together. Their caches are then merged into one, with the padding on the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from spt_parlai.model.rows import rows_of_like_length

_ROOM = 64  # positions by which a tensor grows at a time
_TOKENS_AT_ONCE = {'cpu': 2048}  # what a CPU computes fastest, since its caches are small; a GPU needs more
_TOKENS_AT_ONCE_ELSEWHERE = 16384


class _Growing:
    """A tensor [..., T, d] in a buffer with room for a larger T."""

    def __init__(self, buffer: Tensor, length: int | None = None):
        self.buffer = buffer
        self.length = buffer.shape[-2] if length is None else length

    @property
    def tensor(self) -> Tensor:
        return self.buffer[..., : self.length, :]

    def append(self, more: Tensor) -> None:
        end = self.length + more.shape[-2]
        if end > self.buffer.shape[-2]:
            *outer, _, d = self.buffer.shape
            buffer = self.buffer.new_empty(*outer, end + _ROOM, d)
            buffer[..., : self.length, :] = self.tensor
            self.buffer = buffer
        self.buffer[..., self.length : end, :] = more
        self.length = end


class GrowingLayer(DynamicLayer):
    """A cache layer that appends new keys and values in place, where the library's layer copies all of them for each
    token.

    Everything else that sets `keys` or `values` (reordering, cropping) gives the layer new tensors.

    :param keys, values: buffers [R, ..., T or more, d].
    :param length: T, how many of their positions are filled; None: all.
    """

    _keys: _Growing | None
    _values: _Growing | None

    def __init__(self, keys: Tensor, values: Tensor, length: int | None = None):
        super().__init__()
        self._keys, self._values = _Growing(keys, length), _Growing(values, length)
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    @property
    def keys(self) -> Tensor | None:
        return None if self._keys is None else self._keys.tensor

    @keys.setter
    def keys(self, tensor: Tensor | None) -> None:
        self._keys = None if tensor is None else _Growing(tensor)

    @property
    def values(self) -> Tensor | None:
        return None if self._values is None else self._values.tensor

    @values.setter
    def values(self, tensor: Tensor | None) -> None:
        self._values = None if tensor is None else _Growing(tensor)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        assert self._keys is not None and self._values is not None
        self._keys.append(key_states)
        self._values.append(value_states)
        return self._keys.tensor, self._values.tensor


def forgets_nothing(config: Any) -> bool:
    """Whether the LM's caches can hold a key and a value for every position: its layers keep no states instead.

    Layers with a window can; the library's cache forgets what the window has left, but an `empty_cache` does not.
    """
    return {type(layer) for layer in DynamicCache(config=config).layers} <= {DynamicLayer, DynamicSlidingWindowLayer}


def empty_cache() -> DynamicCache:
    """A cache that keeps every position of every layer, also of those with a window, which their masks hide."""
    return DynamicCache()


def can_merge(cache: Any) -> bool:
    """Whether the cache holds a key and a value for every position and row."""
    return type(cache) is DynamicCache and all(
        type(layer) is DynamicLayer and torch.is_tensor(layer.keys) for layer in cache.layers
    )


def parts_to_prefill(mask: Tensor) -> list[tuple[list[int], int]]:
    """Which rows run together: mask bool [R, T] → [(row numbers, their greatest length)], the longest first."""
    return rows_of_like_length(mask.sum(1).tolist(), _TOKENS_AT_ONCE.get(mask.device.type, _TOKENS_AT_ONCE_ELSEWHERE))


def merge_beginnings(parts: Sequence[Sequence[tuple[Tensor, Tensor]]], places: Sequence[tuple[int, int, int]]) -> Any:
    """A cache [R, ..., T, d] of the beginnings of rows, with the padding on the left.

    :param parts: the keys and values of each layer, [rows, ..., at least the length, d], for each part.
    :param places: (part, row, length) for each row of the new cache.
    """
    T = max(length for _, _, length in places)
    cache = empty_cache()
    for layers in zip(*parts, strict=True):
        merged = []
        for tensors in zip(*layers, strict=True):  # the keys of all parts, then the values
            _, *heads, _, d = tensors[0].shape
            buffer = tensors[0].new_zeros(len(places), *heads, T + _ROOM, d)
            for new, (part, row, length) in enumerate(places):
                buffer[new, ..., T - length : T, :] = tensors[part][row, ..., :length, :]
            merged.append(buffer)
        cache.layers.append(GrowingLayer(merged[0], merged[1], T))
    return cache


def merge(caches: list[Any], parts: list[tuple[list[int], int]]) -> Any:
    """Merge the caches of `parts` into one, [R, ..., T, d], with each row at its old place and its padding on the left.

    The first cache, of the longest rows, becomes the result; the layers of the others are freed one by one.
    """
    R, T = sum(len(rows) for rows, _ in parts), parts[0][1]
    for i in range(len(caches[0].layers)):
        layers = [cache.layers[i] for cache in caches]
        merged = []
        for tensors in ([layer.keys for layer in layers], [layer.values for layer in layers]):
            _, *heads, _, d = tensors[0].shape
            buffer = tensors[0].new_zeros(R, *heads, T + _ROOM, d)
            for (rows, length), tensor in zip(parts, tensors, strict=True):
                buffer[torch.tensor(rows, device=buffer.device), ..., T - length : T, :] = tensor
            merged.append(buffer)
        layer = GrowingLayer(merged[0], merged[1], T)
        for cache in caches:
            cache.layers[i] = layer
    return caches[0]
