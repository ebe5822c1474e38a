"""What is measured on world logs alone: diversity, consistency with the persona, BERTScore, MAUVE.

Nothing is generated again, and what takes long is computed once: it stays in OUT/cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
from significance import Log, p_values, score_of

from spt_parlai.dashboard.world_logs import Turn
from spt_parlai.errors import naming
from spt_parlai.metrics.bertscore import FIELDS, BertModel, scorer
from spt_parlai.metrics.corpus import NgramEntropy
from spt_parlai.metrics.diversity import distinct_among, ngrams, self_bleu
from spt_parlai.metrics.mauve import check_installed, mauve
from spt_parlai.metrics.nli import Nli, c_scores
from spt_parlai.options.validate import chosen_bert

ABSENT = {
    'c_score': 'C.score needs an NLI model: report --nli FOLDER.',
    'hits@1': 'Hits@1 needs evaluations with --set-eval rank_candidates=true of tasks with candidates.',
    'mauve': 'MAUVE needs mauve-text and an LM: report --mauve FOLDER.',
}
"""Column → the sentence that says how to get it."""


class Models(NamedTuple):
    """Models that measure replies, by folder or id: of natural language inference for C.score, an LM for MAUVE, and an
    encoder with its layer for BERTScore.
    """

    nli: str | None = None
    mauve: str | None = None
    bertscore: str | None = None
    bertscore_layer: int | None = None

    def check(self) -> None:
        """Refuse what cannot be used before anything slow starts.

        :raises UsageError: naming the option.
        """
        if self.nli is not None:
            with naming('--nli', self.nli):
                Nli(self.nli)
        if self.mauve is not None:
            with naming('--mauve', self.mauve):
                check_installed()
        if self.bertscore is not None:
            bert = self.bert()
            with naming('--bertscore', self.bertscore):
                scorer(bert)

    def bert(self) -> BertModel | None:
        """The encoder of BERTScore. Raises UsageError where it cannot work."""
        return chosen_bert({'bertscore': self.bertscore, 'bertscore_layer': self.bertscore_layer})


NO_MODELS = Models()


class Measures:
    """The measures of logs, with a cache in a folder."""

    def __init__(self, cache: Path, models: Models = NO_MODELS):
        memory = joblib.Memory(cache, verbose=0)
        self.models = models
        self.p_values = memory.cache(p_values)
        self._self_bleu, self._mauve = map(memory.cache, (self_bleu, mauve))
        self._c_scores, self._bertscores = map(memory.cache, (consistency, bertscores))

    def scored(self, log: Log) -> list[Turn]:
        """The log with the metrics of each reply that need other replies or a model: self-BLEU, C.score, BERTScore."""
        replies = [turn.reply for turn in log]
        added: dict[str, Sequence[float | None]] = {'self_bleu': self._self_bleu(replies) or [0.0] * len(log)}
        if self.models.nli is not None:
            added['c_score'] = self._c_scores(self.models.nli, replies, [turn.persona for turn in log])
        if (bert := self.models.bert()) is not None:
            scores = self._bertscores(tuple(bert), replies, [turn.label for turn in log])
            added |= {f'bertscore_{field}': column for field, column in zip(FIELDS, scores, strict=True)}
        of_turns = zip(*added.values(), strict=True)
        new = ({name: v for name, v in zip(added, values, strict=True) if v is not None} for values in of_turns)
        return [turn._replace(metrics={**(turn.metrics or {}), **own}) for turn, own in zip(log, new, strict=True)]

    def of_log(self, log: Log) -> dict[str, float]:
        """Metric → value of all replies together. log: as `scored` returns it."""
        replies = [turn.reply for turn in log]
        found = {f'ent{n}': NgramEntropy(replies, n).value() for n in (2, 4)}
        for name in ('self_bleu', 'persona_f1', 'c_score', *(f'bertscore_{field}' for field in FIELDS)):
            scores = [score for turn in log if (score := score_of(turn, name)) is not None]
            if scores:
                found[name] = float(np.mean(scores))
        if self.models.mauve is not None:
            with naming('--mauve', self.models.mauve):
                found['mauve'] = self._mauve(replies, [turn.label for turn in log], self.models.mauve)
        return found


def consistency(folder: str, replies: Sequence[str], personas: Sequence[Sequence[str]]) -> list[int | None]:
    """C.score of every reply by the NLI model in a folder."""
    return c_scores(Nli(folder), replies, personas)


def bertscores(bert: tuple[str, int, str], replies: Sequence[str], labels: Sequence[str]) -> list[list[float]]:
    """Precision, recall and F1 of every reply, 0 to 100, as `FIELDS` orders them."""
    pairs = [(reply, (label,)) for reply, label in zip(replies, labels, strict=True)]
    return (100 * np.array(scorer(BertModel(*bert))(pairs)).T).tolist()


def smallest_counts(logs: Sequence[Log]) -> dict[int, int]:
    """n → the number of n-grams, 1 or 2 words long, of the log that has the fewest. logs: at least one."""
    return {n: max(1, min(sum(1 for _ in ngrams((t.reply for t in log), n)) for log in logs)) for n in (1, 2)}


def at_equal_counts(log: Log, equal: Mapping[int, int]) -> dict[str, Any]:
    """DIST-1 and DIST-2 of a log at these numbers of n-grams."""
    counts = {n: Counter(ngrams((turn.reply for turn in log), n)) for n in equal}
    return {
        f'dist{n}_equal': float(distinct_among(np.array([*counts[n].values()] or [0], dtype=float), m))
        for n, m in equal.items()
    }
