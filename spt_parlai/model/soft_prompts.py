"""What a soft prompt group is, and how one begins."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spt_parlai.errors import UsageError

INITIALISATIONS = ('normal', 'embedding-scale', 'vocab')


def initial_prompts(init: str, num_prompts: int, prompt_length: int, word_embeddings: Tensor) -> Tensor:
    """A float32 tensor [K, L, D].

    normal: N(0, 1), the paper's. embedding-scale: normal with the mean and standard deviation of the LLM's own word
    embeddings, dimension by dimension. vocab: K × L different words' embeddings.

    :param word_embeddings: [V, D], the LLM's word embeddings after its input projection.
    """
    shape = (num_prompts, prompt_length, word_embeddings.shape[-1])
    if init == 'normal':
        return torch.randn(shape)
    words = word_embeddings.detach().float().cpu()
    if init == 'embedding-scale':
        return words.mean(0) + words.std(0) * torch.randn(shape)
    if init == 'vocab':
        chosen = torch.randperm(len(words))[: num_prompts * prompt_length]
        if len(chosen) < num_prompts * prompt_length:
            raise UsageError(
                f'--prompt-init vocab: --num-prompts {num_prompts} x --prompt-length {prompt_length} need more words than the '
                f'{len(words)} of the LLM; make these smaller or choose another --prompt-init.'
            )
        return words[chosen].reshape(shape)
    raise ValueError(f'initialisation {init!r} is none of {", ".join(INITIALISATIONS)}')


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
