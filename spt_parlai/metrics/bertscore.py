"""BERTScore as bert-score computes it, without idf weights and without rescaling, over batches of replies."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, Self

from parlai.utils import logging

from spt_parlai.hub import hub_answers
from spt_parlai.metrics.corpus import Gathered

FIELDS = ('p', 'r', 'f1')  # in the order in which bert-score returns them
PAPER = 'microsoft/deberta-xlarge-mnli'  # bert-score's table names its layer 40
BATCH = 64
_NO_LIMIT = 10**6  # a tokenizer without a longest text reports a number far above this
_USUAL_LIMIT = 512

Pair = tuple[str, tuple[str, ...]]  # a reply and its references


class BertModel(NamedTuple):
    """An encoder and the layer whose outputs are compared.

    source: folder or hub id; layer: from 1; device: as torch names it.
    """

    source: str
    layer: int
    device: str


class BertScore(Gathered):
    """Mean precision, recall or F1 over all replies, 0 to 100. Of several references the best counts, as in bert-score.

    Nothing is computed until the value is needed; then all new pairs are computed in batches. Another process receives
    the sum of the scores, not the pairs, so each of several processes scores its own share.

    :param pairs: replies and references that are still to be scored.
    :param field: which of `FIELDS` to report.
    :param total: sum of the scores, 0 to 1, of `count` other replies.
    """

    __slots__ = ('_model', '_field', '_total', '_count')

    def __init__(self, pairs: Iterable[Pair], model: BertModel, field: str, total: float = 0.0, count: int = 0):
        super().__init__(pairs)
        self._model, self._field, self._total, self._count = BertModel(*model), field, total, count

    def _like(self, shared: list) -> Self:
        like = super()._like(shared)
        like._model, like._field, like._total, like._count = self._model, self._field, self._total, self._count
        return like

    def __add__(self, other: Self | None) -> Self:
        total = super().__add__(other)
        if other is not None:
            total._total, total._count = self._total + other._total, self._count + other._count
        return total

    def _sum(self) -> float:
        pairs, field = self.items(), FIELDS.index(self._field)
        return self._total + sum(scores[field] for scores in scorer(self._model)(pairs)) if pairs else self._total

    def value(self) -> float:
        count = self._count + len(self.items())
        return 100 * self._sum() / count if count else 0.0

    def __reduce__(self):
        return BertScore, ((), self._model, self._field, self._sum(), self._count + len(self.items()))


@lru_cache(maxsize=1)
def scorer(model: BertModel) -> Scorer:
    """The scorer of this encoder; one encoder is kept in memory.

    :raises ValueError: if it cannot be loaded.
    """
    return Scorer(model)


class Scorer:
    """Scores replies with their references: (precision, recall, F1), 0 to 1. Each pair is computed once.

    :raises ValueError: if the encoder cannot be loaded.
    """

    def __init__(self, model: BertModel):
        from bert_score import BERTScorer

        try:
            self._scorer = BERTScorer(
                model_type=model.source, num_layers=model.layer, device=model.device, batch_size=BATCH
            )
        except Exception as error:  # damaged files raise whatever their readers raise
            raise ValueError(
                f'the encoder could not be loaded ({_reason(error)}); give one such as {PAPER}, or its folder'
            ) from error
        logging.info(f'BERTScore: {self._scorer.hash}')
        tokenizer = self._scorer._tokenizer
        if tokenizer.model_max_length > _NO_LIMIT:
            # bert-score cuts texts at this length, and such a number makes transformers 5 overflow.
            tokenizer.model_max_length = _longest_text(self._scorer._model)
        self._known: dict[Pair, tuple[float, float, float]] = {}

    def __call__(self, pairs: Sequence[Pair]) -> list[tuple[float, float, float]]:
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        # bert-score itself gives 0 for an empty text, but with transformers 5 it fails instead.
        self._known.update({pair: (0.0, 0.0, 0.0) for pair in new if _is_empty(pair)})
        new = [pair for pair in new if pair not in self._known]
        if new:
            replies = [reply for reply, _ in new]
            references = [[text for text in texts if text.strip()] for _, texts in new]
            columns = self._scorer.score(replies, references, batch_size=BATCH)
            scores = zip(*(column.tolist() for column in columns), strict=True)
            self._known.update(zip(new, scores, strict=True))
        return [self._known[pair] for pair in pairs]


def _is_empty(pair: Pair) -> bool:
    reply, references = pair
    return not reply.strip() or not any(map(str.strip, references))


def _longest_text(bert) -> int:
    """The number of tokens for which the model has positions; RoBERTa's begin after the padding's."""
    positions = getattr(getattr(bert, 'embeddings', None), 'position_embeddings', None)
    before = getattr(positions, 'padding_idx', None)
    longest = getattr(bert.config, 'max_position_embeddings', None) or _USUAL_LIMIT
    return (longest if longest > 0 else _USUAL_LIMIT) - (0 if before is None else before + 1)


# ---- finding an encoder -------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def find_encoder(name: str) -> tuple[str, int]:
    """(folder or hub id, number of layers) of an encoder, which is not loaded yet.

    :param name: a folder or a hub id.
    :raises ValueError: if bert-score is not installed, or the encoder is missing or cannot be used.
    """
    if importlib.util.find_spec('bert_score') is None:
        raise ValueError("bert-score is not installed; pip install 'spt_parlai[bertscore]'")
    source = _source(name)
    return source, _number_of_layers(source)


def best_layer(name: str) -> int | None:
    """The layer that agrees best with people, as bert-score's authors measured it; None if they did not.

    A folder is recognised by its name.
    """
    from bert_score.utils import model2layers

    layers = {key.rsplit('/', 1)[-1]: layer for key, layer in model2layers.items()} | model2layers
    return layers.get(name, layers.get(os.path.basename(os.path.abspath(name))))


def _source(name: str) -> str:
    """The folder, or the id if the hub answers, or else the cached copy of the id."""
    folder = os.path.expanduser(name)
    if os.path.isdir(folder):
        if not os.path.isfile(os.path.join(folder, 'config.json')):
            raise ValueError('the folder holds no config.json; give a Hugging Face model folder')
        return os.path.abspath(folder)
    if hub_answers():
        return name
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, local_files_only=True)
    except Exception as error:  # an invalid id and an empty cache raise different errors
        raise ValueError(
            'no such folder, the hub does not answer, and nothing of that name is cached; '
            f'give a local model folder, or an id such as {PAPER} with a network'
        ) from error


def _number_of_layers(source: str) -> int:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source)
        layers, kind = config.num_hidden_layers, config.model_type
    except Exception as error:  # damaged files raise whatever their readers raise
        raise ValueError(f'it is no model that can be loaded ({_reason(error)}); give {PAPER} or a folder') from error
    if 't5' in source and 't5' not in kind:
        raise ValueError('bert-score takes every model with "t5" in its path for a T5; link or copy it elsewhere')
    return layers


def _reason(error: Exception) -> str:
    """An error's message on one line, at most 200 characters."""
    return ' '.join(str(error).split())[:200]
