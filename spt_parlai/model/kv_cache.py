"""Prefilling rows of unlike lengths without computing their padding, into a cache that grows without being copied."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from spt_parlai.model.rows import rows_of_like_length

_ROOM = 64  # positions that a growing tensor takes at a time
_TOKENS_AT_ONCE = {'cpu': 2048}  # what a CPU computes fastest (its caches are small); a GPU wants more
_TOKENS_AT_ONCE_ELSEWHERE = 16384


class _Growing:
    """A tensor [..., T, d] whose T grows into room behind it."""

    def __init__(self, tensor: Tensor):
        self.buffer = tensor
        self.length = tensor.shape[-2]

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
    """The library's layer of keys and values, which copies all of them for each new token, without the copies.

    Whatever else sets `keys` or `values` (reordering, cropping) gives it tensors of their own.
    """

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    keys = property(
        lambda self: self._keys and self._keys.tensor, lambda self, tensor: setattr(self, '_keys', _grown(tensor))
    )
    values = property(
        lambda self: self._values and self._values.tensor, lambda self, tensor: setattr(self, '_values', _grown(tensor))
    )

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        self._keys.append(key_states)
        self._values.append(value_states)
        return self.keys, self.values


def _grown(tensor: Tensor | None) -> _Growing | None:
    return None if tensor is None else _Growing(tensor)


def can_merge(cache: Any) -> bool:
    """Does the cache hold one key and one value for every position and row, and nothing else? Windows and states do not."""
    return type(cache) is DynamicCache and all(
        type(layer) is DynamicLayer and torch.is_tensor(layer.keys) for layer in cache.layers
    )


def parts_to_prefill(mask: Tensor) -> list[tuple[list[int], int]]:
    """Rows to run together: bool [R, T] → [(row numbers, their greatest length)], the longest first."""
    return rows_of_like_length(mask.sum(1).tolist(), _TOKENS_AT_ONCE.get(mask.device.type, _TOKENS_AT_ONCE_ELSEWHERE))


def merge(caches: list[Any], parts: list[tuple[list[int], int]]) -> Any:
    """One cache [R, ..., T, d] from those of `parts`, each row at its old place and with its padding on the left.

    The first cache, of the longest rows, becomes the result; the others' layers are freed on the way.
    """
    R, T = sum(len(rows) for rows, _ in parts), parts[0][1]
    for i in range(len(caches[0].layers)):
        layers = [cache.layers[i] for cache in caches]
        merged = []
        for tensors in ([layer.keys for layer in layers], [layer.values for layer in layers]):
            _, *heads, _, d = tensors[0].shape
            buffer = tensors[0].new_zeros(R, *heads, T + _ROOM, d)
            for (rows, length), tensor in zip(parts, tensors):
                buffer[torch.tensor(rows, device=buffer.device), ..., T - length : T, :] = tensor
            merged.append(buffer)
        layer = GrowingLayer(*merged)
        layer._keys.length = layer._values.length = T
        for cache in caches:
            cache.layers[i] = layer
    return caches[0]
