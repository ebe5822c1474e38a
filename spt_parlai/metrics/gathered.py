"""Metrics that can only be computed over all replies at once."""

from __future__ import annotations

from collections.abc import Iterable

from parlai.core.metrics import Metric


class Gathered(Metric):
    """Keeps what each reply contributes, in order; a subclass's `value()` is computed from `items()`.

    ParlAI adds a metric up reply by reply and may keep any of the sums on the way, so `+` changes neither of its operands. It
    costs no more than what it adds all the same: sums share one list, of which each sees its own beginning.
    """

    __slots__ = ('_shared', '_length')

    def __init__(self, items: Iterable = ()):
        self._shared = list(items)
        self._length = len(self._shared)

    @property
    def macro_average(self) -> bool:
        """Over several tasks, as ParlAI's f1: the mean of the tasks' values, unless `--aggregate-micro true`."""
        return True

    def items(self) -> list:
        return self._shared[: self._length]

    def __add__(self, other: Gathered | None) -> Gathered:
        if other is None:
            return self
        added = other.items()
        total = self._like(self._shared if len(self._shared) == self._length else self.items())
        total._shared += added
        total._length = len(total._shared)
        return total

    def _like(self, shared: list) -> Gathered:
        """A metric of this kind on that very list."""
        like = type(self).__new__(type(self))
        like._shared, like._length = shared, len(shared)
        return like

    def __reduce__(self):
        return type(self), (self.items(),)
