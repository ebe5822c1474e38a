"""BERTScore as bert-score computes it, without idf weights and without rescaling, over batches of replies."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from parlai.utils import logging

from spt_parlai.errors import UsageError
from spt_parlai.hub import hub_answers
from spt_parlai.metrics.corpus import Gathered

FIELDS = {'bertscore_p': 0, 'bertscore_r': 1, 'bertscore_f1': 2}  # metric → place in bert-score's answer
PAPER = 'microsoft/deberta-xlarge-mnli'  # of which bert-score's table takes layer 40
BATCH = 64
_WITHOUT_LIMIT = 10**6  # a tokenizer that knows no longest text says a number far beyond this
_USUAL_LIMIT = 512

Pair = tuple[str, tuple[str, ...]]  # a reply and its references


class BertModel(NamedTuple):
    """Which model, and the layer whose outputs are compared. source: a folder or hub id; device: as torch names it."""

    source: str
    layer: int
    device: str


class BertScore(Gathered):
    """Mean precision, recall or F1 of all replies, 0 to 100; of several references the best counts, as in bert-score.

    Nothing is computed until the value is asked for; then all pairs not seen before are, in batches. What goes to another
    process is the sum of what was computed here, so that each of several processes scores its own share.

    :param pairs: replies and references that are still to be scored.
    :param field: place of the score in bert-score's answer, see `FIELDS`.
    :param total: sum of the scores, 0 to 1, of `count` other replies.
    """

    __slots__ = ('_model', '_field', '_total', '_count')

    def __init__(self, pairs: Iterable[Pair], model: BertModel, field: int, total: float = 0.0, count: int = 0):
        super().__init__(pairs)
        self._model, self._field, self._total, self._count = BertModel(*model), field, total, count

    def _like(self, shared: list) -> BertScore:
        like = super()._like(shared)
        like._model, like._field, like._total, like._count = self._model, self._field, self._total, self._count
        return like

    def __add__(self, other: BertScore | None) -> BertScore:
        total = super().__add__(other)
        if other is not None:
            total._total, total._count = self._total + other._total, self._count + other._count
        return total

    def _sum(self) -> float:
        pairs = self.items()
        return self._total + sum(scores[self._field] for scores in scorer(self._model)(pairs)) if pairs else self._total

    def value(self) -> float:
        count = self._count + len(self.items())
        return 100 * self._sum() / count if count else 0.0

    def __reduce__(self):
        return BertScore, ((), self._model, self._field, self._sum(), self._count + len(self.items()))


@lru_cache(maxsize=1)
def scorer(model: BertModel) -> Scorer:
    """The one that is loaded."""
    return Scorer(model)


class Scorer:
    """Pairs → (precision, recall, F1), each pair computed once. Raises UsageError for a model that cannot be loaded."""

    def __init__(self, model: BertModel):
        from bert_score import BERTScorer

        try:
            self._scorer = BERTScorer(
                model_type=model.source, num_layers=model.layer, device=model.device, batch_size=BATCH
            )
        except Exception as error:  # damaged files raise what their readers please
            reason = ' '.join(str(error).split())[:200]
            raise UsageError(
                f'--bertscore {model.source}: it could not be loaded ({reason}); give an encoder such as {PAPER}, or its folder.'
            ) from error
        logging.info(f'BERTScore: {self._scorer.hash}')
        tokenizer = self._scorer._tokenizer
        if (
            tokenizer.model_max_length > _WITHOUT_LIMIT
        ):  # bert-score cuts texts there, a number that transformers 5 cannot count to
            tokenizer.model_max_length = _longest_text(self._scorer._model)
        self._known: dict[Pair, tuple[float, float, float]] = {}

    def __call__(self, pairs: Sequence[Pair]) -> list[tuple[float, float, float]]:
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        empty = [
            (reply, references) for reply, references in new if not reply.strip() or not any(map(str.strip, references))
        ]
        self._known.update(
            dict.fromkeys(empty, (0.0, 0.0, 0.0))
        )  # bert-score's own answer, which transformers 5 lets fail
        full = [
            (reply, [r for r in references if r.strip()])
            for reply, references in new
            if (reply, references) not in self._known
        ]
        if full:
            scores = self._scorer.score(*map(list, zip(*full)), batch_size=BATCH)
            asked = [pair for pair in new if pair not in self._known]
            self._known.update(zip(asked, zip(*(column.tolist() for column in scores)), strict=True))
        return [self._known[pair] for pair in pairs]


def _longest_text(bert) -> int:
    """How many tokens the model has positions for; RoBERTa's first is that after its padding's."""
    positions = getattr(getattr(bert, 'embeddings', None), 'position_embeddings', None)
    before = getattr(positions, 'padding_idx', None)
    longest = getattr(bert.config, 'max_position_embeddings', None) or _USUAL_LIMIT
    return (longest if longest > 0 else _USUAL_LIMIT) - (0 if before is None else before + 1)


@lru_cache(maxsize=8)
def bert_model(name: str, layer: int | None, no_cuda: bool = False) -> BertModel:
    """What `--bertscore` and `--bertscore-layer` ask for, found but not loaded yet.

    :raises UsageError: where bert-score or the model is missing, or the layer is not known or not there.
    """
    if importlib.util.find_spec('bert_score') is None:
        raise UsageError(f"--bertscore {name}: bert-score is not installed; pip install 'spt_parlai[bertscore]'.")
    import torch

    source = _source(name)
    layers = _number_of_layers(name, source)
    if layer is None:
        layer = _usual_layer(name)
    if not 1 <= layer <= layers:
        raise UsageError(f'--bertscore-layer {layer}: {name} has layers 1 to {layers}; give one of these.')
    return BertModel(source, layer, 'cuda' if torch.cuda.is_available() and not no_cuda else 'cpu')


def _source(name: str) -> str:
    """A folder, or an id that the hub will be asked for; the cached copy of an id where no hub answers."""
    folder = os.path.expanduser(name)
    if os.path.isdir(folder):
        if not os.path.isfile(os.path.join(folder, 'config.json')):
            raise UsageError(f'--bertscore {name}: the folder holds no config.json; give a Hugging Face model folder.')
        return os.path.abspath(folder)
    if hub_answers():
        return name
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, local_files_only=True)
    except Exception as error:  # no such id, no such file, nothing cached: each has its own
        raise UsageError(
            f'--bertscore {name}: no such folder, and the hub does not answer and nothing of that name is cached; '
            f'give a local model folder, or an id such as {PAPER} with a network.'
        ) from error


def _number_of_layers(name: str, source: str) -> int:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source)
        layers, kind = config.num_hidden_layers, config.model_type
    except Exception as error:  # damaged files raise what their readers please
        reason = ' '.join(str(error).split())[:200]
        raise UsageError(
            f'--bertscore {name}: it is no model that can be loaded ({reason}); give {PAPER} or a folder.'
        ) from error
    if 't5' in source and 't5' not in kind:
        raise UsageError(
            f'--bertscore {name}: bert-score takes whatever has "t5" in its path for a T5; link or copy it elsewhere.'
        )
    return layers


def _usual_layer(name: str) -> int:
    """The layer that agrees best with people, as bert-score's authors measured; a folder is known by its name."""
    from bert_score.utils import model2layers

    known = {key.rsplit('/', 1)[-1]: layer for key, layer in model2layers.items()} | model2layers
    layer = known.get(name, known.get(os.path.basename(os.path.abspath(name))))
    if layer is None:
        raise UsageError(f'--bertscore {name}: bert-score knows no best layer for it; give one with --bertscore-layer.')
    return layer
