"""How long rows may be before an LM computes a row differently beside other rows, or beside its own later tokens."""

from __future__ import annotations

from typing import Any


def longest_independent_row(config: Any) -> int | None:
    """Return the longest row, in tokens, whose results depend on nothing but its tokens; None: any row's do.

    Two mechanisms look at other tokens than those before, each beyond a length that the configuration names. Where a
    row of the batch is longer, longrope rotates all rows by its long factors; and Doge's dynamic mask chooses the keys
    that it keeps among later tokens, too.
    """
    limits = [_longrope(config), getattr(config, 'keep_window_size', None)]
    return min((limit for limit in limits if limit), default=None)


def _longrope(config: Any) -> int | None:
    """The length up to which every layer with longrope keeps its short factors (Phi-3: 4096)."""
    rope = getattr(config, 'rope_parameters', None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]  # some LMs have one for a kind of layer
    trained = getattr(config, 'original_max_position_embeddings', None)
    limits = (k.get('original_max_position_embeddings', trained) for k in kinds if k.get('rope_type') == 'longrope')
    return min((limit for limit in limits if limit), default=None)
