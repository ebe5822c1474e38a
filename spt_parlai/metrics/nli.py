"""C.score: how consistent replies are with their speaker's persona, by a model of natural language inference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

ENTAILS, NEUTRAL, CONTRADICTS = 1, 0, -1
BATCH = 64
LONGEST = 256  # tokens of a reply and a sentence together


class Nli:
    """A sequence classifier that tells whether a premise entails or contradicts a hypothesis.

    :param folder: a Hugging Face folder, or a cached id, whose labels begin with `entail` and `contradict`.
    :raises ValueError: if it cannot be loaded, or has other labels.
    """

    def __init__(self, folder: str | Path):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
            self._model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        except Exception as error:  # damaged files raise whatever their readers raise
            reason = ' '.join(str(error).split())[:200]
            raise ValueError(f'the model could not be loaded ({reason}); give the folder of an NLI model') from error
        labels = {int(i): label.lower() for i, label in self._model.config.id2label.items()}
        self._verdicts = {
            i: ENTAILS if label.startswith('entail') else CONTRADICTS if label.startswith('contradict') else NEUTRAL
            for i, label in labels.items()
        }
        if not {ENTAILS, CONTRADICTS} <= set(self._verdicts.values()):
            raise ValueError(
                f'its labels are {", ".join(labels.values())}; give a model that has labels for entailment and '
                'contradiction'
            )
        self._known: dict[tuple[str, str], int] = {}

    def verdicts(self, pairs: Iterable[tuple[str, str]]) -> list[int]:
        """`ENTAILS`, `NEUTRAL` or `CONTRADICTS` for every (premise, hypothesis). Each pair is computed once."""
        import torch

        pairs = list(pairs)
        new = sorted({*pairs} - self._known.keys(), key=lambda pair: (sum(map(len, pair)), pair))  # of like lengths
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            tokens = self._tokenizer(
                [premise for premise, _ in batch],
                [hypothesis for _, hypothesis in batch],
                padding=True,
                truncation=True,
                max_length=min(LONGEST, self._tokenizer.model_max_length),
                return_tensors='pt',
            )
            with torch.inference_mode():
                chosen = self._model(**tokens).logits.argmax(-1).tolist()
            self._known.update((pair, self._verdicts[i]) for pair, i in zip(batch, chosen, strict=True))
        return [self._known[pair] for pair in pairs]


def c_scores(nli: Nli, replies: Sequence[str], personas: Sequence[Sequence[str]]) -> list[int | None]:
    """Consistency score of every reply (Madotto et al., 2019): the sentences of its speaker's persona that it entails,
    less those that it contradicts; None for a reply whose speaker has no persona.
    """
    pairs = [
        (reply, sentence)
        for reply, persona in zip(replies, personas, strict=True)
        if reply.strip()
        for sentence in persona
    ]
    verdict = dict(zip(pairs, nli.verdicts(pairs), strict=True))
    return [
        sum(verdict.get((reply, sentence), NEUTRAL) for sentence in persona) if persona else None
        for reply, persona in zip(replies, personas, strict=True)
    ]
