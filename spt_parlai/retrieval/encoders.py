"""Texts → vectors whose cosine says how alike they are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from spt_parlai import hub
from spt_parlai.model.causal_lm import CausalLM
from spt_parlai.model.retriever import context_mean

LLM = 'llm'  # --retrieval-encoder: the frozen LLM's own word embeddings
_OPTION = '--retrieval-encoder'
_LONGEST = 512  # tokens; what most encoders were trained with


class TextEncoder(Protocol):
    """fingerprint: changes when the vectors may."""

    fingerprint: str

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """float32 [N, E] on the CPU; a text's vector does not depend on the others."""


class TransformerEncoder:
    """Mean of a Hugging Face encoder's last hidden states over a text's tokens, as Contriever does.

    :param name: hub id or local folder.
    """

    def __init__(self, name: str, device: torch.device | str = 'cpu'):
        self.tokenizer = hub.load_tokenizer(name, option=_OPTION)
        self.model = hub.load_encoder(name, option=_OPTION).to(device).eval().requires_grad_(False)
        known = getattr(self.model.config, 'max_position_embeddings', None) or _LONGEST
        self.longest = min(_LONGEST, self.tokenizer.model_max_length, known)
        self.fingerprint = _digest(
            weight for name, weight in self.model.named_parameters() if not name.startswith('pooler.')
        )

    def __call__(self, texts):
        rows = self.tokenizer(list(texts), truncation=True, max_length=self.longest, padding=False)['input_ids']
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=self.model.device)
        mask = torch.tensor(
            [[True] * len(row) + [False] * (width - len(row)) for row in rows], device=self.model.device
        )
        with torch.no_grad():
            hidden = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return context_mean(hidden, mask).cpu()


class WordEncoder:
    """Weighted mean of the LLM's own word embeddings: a token of which a text has c weighs (1 + ln c) · ln((N + 2) / (n + 1)) where n of
    the N `texts` have it.

    Needs nothing but the LLM, and no pass through it.

    :param tokenize: text → token ids.
    :param texts: what is indexed.
    """

    def __init__(self, llm: CausalLM, tokenize: Callable[[str], Sequence[int]], texts: Sequence[str]):
        self.llm, self.tokenize = llm, tokenize
        weight = llm.lm.get_input_embeddings().weight
        found_in = torch.zeros(len(weight))  # in how many texts each token is
        for text in texts:
            found_in[list(set(tokenize(text)))] += 1
        self.rarity = torch.log((len(texts) + 2) / (found_in + 1))  # above 0 also for a token that all texts have
        self.fingerprint = _digest([weight])

    def __call__(self, texts):
        vectors = []
        for text in texts:
            ids, count = torch.tensor(self.tokenize(text)).unique(return_counts=True)
            weight = (1 + count.log()) * self.rarity[ids]
            vectors.append(weight @ self.llm.embed(ids).float().cpu() / weight.sum())
        return torch.stack(vectors)


def _digest(weights: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(str(tuple(weight.shape)).encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
