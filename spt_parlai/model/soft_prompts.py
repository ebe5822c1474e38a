"""What a soft prompt group is. How one begins: `initialisation`; how one joins the input: `rows`.

How a soft prompt group begins: at random, from words, or from prompts trained before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import Tensor, nn

from spt_parlai.errors import UsageError


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


INITIALISATIONS = ('normal', 'embedding-scale', 'vocab')
SOURCES = ('text:', 'file:')

Tokenize = Callable[[str], Sequence[int]]
"""A text → token ids, without special tokens."""


def initial_prompts(
    init: str,
    num_prompts: int,
    prompt_length: int,
    embed: Callable[[Tensor], Tensor],
    tokenize: Tokenize,
    vocabulary: int,
    read_prompts: Callable[[str], Tensor],
) -> Tensor:
    """A float32 tensor [K, L, D] on the CPU.

    normal: N(0, 1), the paper's. embedding-scale: normal with the mean and standard deviation of the LLM's own word
    embeddings, dimension by dimension. vocab: K × L different words' embeddings. `text:A|B|…`: the embeddings of K texts'
    words, repeated or cut to L. `file:PATH`: the same with a text a line of a `.txt` file, or prompts trained before.

    :param embed: token ids [...] → the LLM's word embeddings [..., D].
    :param vocabulary: V, how many of the LLM's token ids its tokenizer uses.
    :param read_prompts: path → trained prompts [K, L, D].
    :raises UsageError: for a source that does not give K different prompts of L tokens and the LLM's D.
    """
    K, L, D = num_prompts, prompt_length, embed(torch.zeros(1, dtype=torch.long)).shape[-1]
    if init.startswith('file:') and not init.endswith('.txt'):
        return _check_trained(init, read_prompts(init.removeprefix('file:')), (K, L, D))
    if init.startswith(SOURCES):
        return embed(_words_of_texts(init, K, L, tokenize)).float().cpu()
    if init == 'normal':
        return torch.randn(K, L, D)
    words = embed(torch.arange(vocabulary)).float().cpu()  # [V, D]
    if init == 'embedding-scale':
        return words.mean(0) + words.std(0) * torch.randn(K, L, D)
    if init == 'vocab':
        if vocabulary < K * L:
            raise UsageError(
                f'--prompt-init vocab: --num-prompts {K} x --prompt-length {L} need more words than the {vocabulary} of the LLM; '
                'make these smaller or choose another --prompt-init.'
            )
        return words[torch.randperm(vocabulary)[: K * L]].reshape(K, L, D)
    raise ValueError(f'initialisation {init!r} is none of {", ".join(INITIALISATIONS + SOURCES)}')


def _words_of_texts(init: str, K: int, L: int, tokenize: Tokenize) -> Tensor:
    """Token ids [K, L] of K texts. Prompts that begin equal get equal gradients and stay equal, so they must differ."""
    texts = [text.strip() for text in _texts(init) if text.strip()]
    if len(texts) != K:
        raise UsageError(f'--prompt-init {init}: {len(texts)} texts for --num-prompts {K}; give one for each prompt.')
    rows = [tuple(islice(cycle(tokenize(text)), L)) for text in texts]
    for k, row in enumerate(rows):
        if row in rows[:k]:
            raise UsageError(
                f'--prompt-init {init}: the texts of prompts {rows.index(row)} and {k} begin with the same {L} tokens, and prompts that '
                'begin equal stay equal; give texts that differ there, or a larger --prompt-length.'
            )
    return torch.tensor(rows)


def _texts(init: str) -> list[str]:
    kind, value = init.split(':', 1)
    if kind == 'text':
        return value.split('|')
    try:
        return Path(value).expanduser().read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'it is not UTF-8 text'
        raise UsageError(
            f'--prompt-init {init}: the file cannot be read ({reason}); give one with a text a line.'
        ) from error


def _check_trained(init: str, prompts: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Prompts read from a file, if they are of the shape [K, L, D] that is asked for.

    :raises UsageError: if they are not.
    """
    if tuple(prompts.shape) != shape:
        found, wanted = ('K {}, L {}, D {}'.format(*s) for s in (prompts.shape, shape))
        raise UsageError(
            f'--prompt-init {init}: the file holds {found}; --num-prompts, --prompt-length and --llm ask for {wanted}.'
        )
    return prompts.float()
