"""Text encoders: they turn texts into vectors whose cosine measures how similar the texts are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from spt_parlai import hub
from spt_parlai.dialogue.control_tokens import SafeTokenizer
from spt_parlai.errors import UsageError
from spt_parlai.model.causal_lm import CausalLM
from spt_parlai.model.retriever import context_mean
from spt_parlai.model.sharding import need

LLM = 'llm'  # the value of --retrieval-encoder and --similarity-encoder for the frozen LLM's own word embeddings
_OPTION = '--retrieval-encoder'
_LONGEST = 512  # tokens, the length that most encoders were trained with
_TRIAL = ('i like tea.', 'context: Q: hello ! how are you ? R: i have a dog, and you ?')  # a shorter and a longer text
_TOLERANCE = 0.01  # of the largest value: far above rounding, far below the effect of another input


class TextEncoder(Protocol):
    """Encodes texts as vectors of E values.

    :param fingerprint: identifies the encoder; another fingerprint means that the vectors may differ.
    """

    fingerprint: str

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """The vectors of N texts, float32 [N, E] on the CPU. A text's vector does not depend on the other texts."""


class TransformerEncoder:
    """The mean of a Hugging Face encoder's last hidden states over the tokens of a text, as in Contriever.

    :param name: Hugging Face id or local folder.
    :param option: the option that named it, for error messages.
    :raises UsageError: if the encoder cannot be loaded, or gives a text another vector beside a longer one.
    """

    def __init__(self, name: str, device: torch.device | str = 'cpu', option: str = _OPTION):
        self.tokenizer = hub.load_tokenizer(name, option=option)
        self.model = hub.load_encoder(name, option=option).to(device).eval().requires_grad_(False)
        self._safe = SafeTokenizer(self.tokenizer)
        known = getattr(self.model.config, 'max_position_embeddings', None) or _LONGEST
        self.longest = min(_LONGEST, self.tokenizer.model_max_length, known)
        self.fingerprint = _digest(
            weight for name, weight in self.model.named_parameters() if not name.startswith('pooler.')
        )
        alone, beside = self(_TRIAL[:1])[0], self(_TRIAL)[0]
        if not (alone - beside).abs().max() <= _TOLERANCE * alone.abs().max():
            raise UsageError(
                f'{option} {name}: {type(self.model).__name__} gives a text another vector beside a longer text; '
                f'give another encoder, such as facebook/contriever, or {option} {LLM}.'
            )

    def __call__(self, texts):
        rows = self.tokenizer(list(texts), truncation=True, max_length=self.longest, padding=False)['input_ids']
        for i, text in enumerate(texts):
            if self._safe.holds_control_token(text):
                rows[i] = self._around(self._safe.encode(text))
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=self.model.device)
        mask = torch.tensor(
            [[True] * len(row) + [False] * (width - len(row)) for row in rows], device=self.model.device
        )
        with torch.no_grad():
            hidden = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return context_mean(hidden, mask).cpu()

    def _around(self, ids: list[int]) -> list[int]:
        """The ids of a text, cut to fit, between those that the tokenizer puts around every text."""
        some = self._safe.encode('a')
        whole = self.tokenizer('a')['input_ids']
        start = next((i for i in range(len(whole)) if whole[i : i + len(some)] == some), 0)
        before, after = whole[:start], whole[start + len(some) :]
        return [*before, *ids[: self.longest - len(before) - len(after)], *after]


class WordEncoder:
    """A weighted mean of the LLM's own word embeddings, which needs neither another model nor a pass through the LLM.

    A token that occurs c times in a text has the weight (1 + ln c) · ln((N + 2) / (n + 1)), where n of the N indexed
    texts contain it. Scikit-learn's `TfidfVectorizer` adds 1 to the second factor, so that common words count more:
    with its weights every third query finds another dialogue.

    :param tokenize: turns a text into token ids.
    :param texts: the N texts that are indexed.
    """

    def __init__(self, llm: CausalLM, tokenize: Callable[[str], Sequence[int]], texts: Sequence[str]):
        self.llm, self.tokenize = llm, tokenize
        need(llm.lm.get_input_embeddings())
        weight = llm.lm.get_input_embeddings().weight
        found_in = torch.zeros(len(weight))  # the number of texts that contain each token
        for text in texts:
            found_in[list(set(tokenize(text)))] += 1
        self.rarity = torch.log((len(texts) + 2) / (found_in + 1))  # above 0 also for a token in every text
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
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
