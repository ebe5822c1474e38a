"""The soft prompt group, and how it begins: at random, from words, or from prompts that were trained before.

How a prompt joins the input is the subject of `rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import Tensor, nn

from spt_parlai.text_files import read_lines

INITIALISATIONS = ('normal', 'embedding-scale', 'vocab')
SOURCES = ('text:', 'file:')

COPIES_NOISE = 0.1  # enough to tell copies of one prompt apart, and too little to change its perplexity

Tokenize = Callable[[str], Sequence[int]]
"""A text → token ids, without special tokens."""


class SoftPromptGroup(nn.Module):
    """SP of the paper: K soft prompts of L tokens each, a float32 parameter [K, L, D].

    With L = 0 there is no soft prompt: nothing trains, and `tokens` is a buffer instead of a parameter.
    """

    tokens: Tensor

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
    def of_each(self) -> Tensor:
        """The parameter whose first dimension is K: what a prompt does not share with others."""
        return self.tokens

    @property
    def num_prompts(self) -> int:
        return self.tokens.shape[0]

    @property
    def length(self) -> int:
        return self.tokens.shape[1]


class SharedPrompts(SoftPromptGroup):
    """Soft prompts with a shared part: SP_k = SP_0 + A_k B, of which `shared`, `own` and `directions` train.

    What is common to all replies trains SP_0 [L, D] whichever prompt a reply is assigned to; a prompt's own part has
    rank r: A_k [L, r] in directions B [r, D] that all prompts share. All float32.

    A state dict holds the plain prompts, `tokens` [K, L, D], beside these, so that whatever reads prompts reads them.

    :param initial: the prompts to begin with, [K, L, D]: SP_0 is their mean, A_k B the best approximation of the rest.
    :raises ValueError: if there is one prompt, or the rank is larger than that of any K prompts' differences.
    """

    def __init__(self, initial: Tensor, rank: int):
        nn.Module.__init__(self)
        K, L, D = initial.shape
        most = min((K - 1) * L, D)
        if not 0 < rank <= most:
            raise ValueError(f'the differences of {_counted(K, "prompt")} of {L} tokens have ranks from 1 to {most}')
        shared = initial.mean(0)
        left, values, right = torch.linalg.svd((initial - shared).flatten(0, 1), full_matrices=False)
        root = values[:rank].sqrt()
        self.shared = nn.Parameter(shared)
        self.own = nn.Parameter((left[:, :rank] * root).view(K, L, rank))
        self.directions = nn.Parameter(root[:, None] * right[:rank])

    @property
    def tokens(self) -> Tensor:  # type: ignore[override]
        return self.shared + self.own @ self.directions

    @property
    def of_each(self) -> Tensor:
        return self.own

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f'{prefix}tokens'] = self.tokens.detach()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict.pop(f'{prefix}tokens', None)
        super()._load_from_state_dict(state_dict, prefix, *args)


def initial_prompts(
    init: str,
    num_prompts: int,
    prompt_length: int,
    embed: Callable[[Tensor], Tensor],
    tokenize: Tokenize,
    vocabulary: int,
    read_prompts: Callable[[str], Tensor],
    noise: float | None = None,
) -> Tensor:
    """Return the initial soft prompts, float32 [K, L, D] on the CPU.

    normal: N(0, 1), as in the paper. embedding-scale: normal with the mean and standard deviation of the LM's own word
    embeddings, dimension by dimension. vocab: the embeddings of K × L different words. `text:A|B|…`: the embeddings of
    the words of K texts, repeated or cut to L. `file:PATH`: the same with one text per line of a `.txt` file, or else
    prompts that were trained before; a single one is copied K times, with noise that tells the copies apart.

    :param embed: token ids [...] → the LM's word embeddings [..., D].
    :param vocabulary: V, how many of the LM's token ids its tokenizer uses.
    :param read_prompts: path → trained prompts [K, L, D].
    :param noise: standard deviation of the normal noise on trained prompts, in units of that of their values; None:
        a tenth for copies of a single prompt, and none otherwise.
    :raises ValueError: for a source that does not give K different prompts of L tokens and the LM's D.
    """
    K, L, D = num_prompts, prompt_length, embed(torch.zeros(1, dtype=torch.long)).shape[-1]
    if init.startswith('file:') and not init.endswith('.txt'):
        return _from_trained(read_prompts(init.removeprefix('file:')).float(), (K, L, D), noise)
    if noise:
        raise ValueError('noise is added to trained prompts only; set it to 0 or give file:PATH')
    if init.startswith(SOURCES):
        return embed(_words_of_texts(init, K, L, tokenize)).float().cpu()
    if init == 'normal':
        return torch.randn(K, L, D)
    words = embed(torch.arange(vocabulary)).float().cpu()  # [V, D]
    if init == 'embedding-scale':
        return words.mean(0) + words.std(0) * torch.randn(K, L, D)
    if init == 'vocab':
        if vocabulary < K * L:
            raise ValueError(
                f'{K} prompts of {L} tokens need more words than the {vocabulary} of the LM; '
                'use fewer or shorter prompts, or another initialisation'
            )
        return words[torch.randperm(vocabulary)[: K * L]].reshape(K, L, D)
    raise ValueError(f'initialisation {init!r} is none of {", ".join(INITIALISATIONS + SOURCES)}')


def _words_of_texts(init: str, K: int, L: int, tokenize: Tokenize) -> Tensor:
    """Token ids [K, L] of K texts. Prompts that begin equal get equal gradients and stay equal, so they must differ."""
    texts = [text.strip() for text in _texts(init) if text.strip()]
    if len(texts) != K:
        raise ValueError(f'{_counted(len(texts), "text")} for {_counted(K, "prompt")}; give one text for each prompt')
    rows = [tuple(islice(cycle(tokenize(text)), L)) for text in texts]
    for k, row in enumerate(rows):
        if row in rows[:k]:
            raise ValueError(
                f'the texts of prompts {rows.index(row)} and {k} begin with the same {L} tokens, and prompts that '
                'begin equal stay equal; give texts that differ there, or use longer prompts'
            )
    return torch.tensor(rows)


def _counted(number: int, noun: str) -> str:
    return f'{number} {noun}{"" if number == 1 else "s"}'


def _texts(init: str) -> list[str]:
    kind, value = init.split(':', 1)
    if kind == 'text':
        return value.split('|')
    try:
        return read_lines(Path(value).expanduser())
    except ValueError as error:
        raise ValueError(f'the file cannot be read ({error}); give a file with one text per line') from error


def _from_trained(prompts: Tensor, shape: tuple[int, int, int], noise: float | None) -> Tensor:
    """Return trained prompts, float32 [K, L, D], with noise; a single one becomes K copies that the noise tells apart.

    :raises ValueError: if their shape is not the [K, L, D] that is needed, or copies would be equal.
    """
    if prompts.shape[0] == 1 and tuple(prompts.shape[1:]) == shape[1:]:
        if noise is None and shape[0] > 1:
            noise = COPIES_NOISE
        if shape[0] > 1 and not noise:
            raise ValueError(
                f'the file holds one prompt, and {shape[0]} copies that begin equal stay equal; '
                f'add noise to them, such as {COPIES_NOISE}'
            )
        prompts = prompts.expand(shape)
    if tuple(prompts.shape) != shape:
        found, needed = ('K {}, L {}, D {}'.format(*s) for s in (prompts.shape, shape))
        raise ValueError(
            f'the file holds prompts of {found}, but {needed} is needed for this LM; give a file that fits'
        )
    return prompts + noise * prompts.std() * torch.randn(shape) if noise else prompts
