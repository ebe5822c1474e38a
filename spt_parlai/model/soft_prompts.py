"""What a soft prompt group is. How one begins: `initialisation`; how one joins the input: `rows`."""

from __future__ import annotations

from torch import Tensor, nn


class SoftPromptGroup(nn.Module):
    """SP of the paper: K soft prompts of L tokens each, a float32 parameter [K, L, D]."""

    def __init__(self, initial: Tensor):
        super().__init__()
        self.tokens = nn.Parameter(initial.clone())

    @property
    def num_prompts(self) -> int:
        return self.tokens.shape[0]

    @property
    def length(self) -> int:
        return self.tokens.shape[1]
