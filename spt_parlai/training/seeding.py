"""One seed for everything random, and the states of the random generators as plain data."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed Python, NumPy and torch.

    The processes of a run share torch's seed (the same initialisation) and differ in the other two (different data).
    """
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)
    torch.manual_seed(seed)


def noise_generator(seed: int, rank: int, batch: int) -> torch.Generator:
    """A generator for one batch of one process: it gives the same numbers whenever that batch is trained on."""
    (state,) = np.random.SeedSequence([seed, rank, batch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) >> 1)


def new_seed() -> int:
    """A seed from the system's entropy, at least 0 and below 2³¹."""
    return random.SystemRandom().randrange(2**31)


def random_state() -> dict[str, Any]:
    """The states of all generators, as types that `torch.load(weights_only=True)` admits."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        'python': (version, list(words), gauss),
        'numpy': (kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)),
        'torch': torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Set all generators to the states that `random_state` returned."""
    version, words, gauss = state['python']
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state['numpy']
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state['torch'])
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'])
