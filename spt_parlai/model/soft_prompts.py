"""What a soft prompt group is. How one begins: `initialisation`; how one joins the input: `rows`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SoftPromptGroup(nn.Module):
    """SP of the paper: K soft prompts of L tokens each, a float32 parameter [K, L, D].

    L = 0 is the LM without a soft prompt: there is nothing to train, and `tokens` is no parameter.
    """

    def __init__(self, initial: Tensor):
        super().__init__()
        if initial.shape[1]:
            self.tokens = nn.Parameter(initial.clone())
        else:
            self.register_buffer('tokens', initial.clone(), persistent=False)

    @classmethod
    def none(cls, width: int) -> SoftPromptGroup:
        """One prompt of no tokens, D = width."""
        return cls(torch.zeros(1, 0, width))

    @property
    def num_prompts(self) -> int:
        return self.tokens.shape[0]

    @property
    def length(self) -> int:
        return self.tokens.shape[1]
