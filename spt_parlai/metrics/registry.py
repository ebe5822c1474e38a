"""Every metric, declared once: its definition, its direction, its highest value and whether it needs replies.

A new metric of replies is a function in `reply`, `corpus` or a file of its own, and an entry of `REPLY_METRICS` here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from parlai.core.metrics import AverageMetric, Metric

from spt_parlai.metrics.bertscore import BertModel, BertScore
from spt_parlai.metrics.corpus import ORDERS, CorpusBleu, Distinct, NgramEntropy, SelfBleu
from spt_parlai.metrics.reply import ROUGES, meteor, persona_f1, rouge, unigram_f1
from spt_parlai.objective import SptObjective


class ScoredReply(NamedTuple):
    """What a metric of replies may look at.

    references: at least one; persona: the speaker's persona, its sentences joined by blanks, '' if there is none;
    bert: the encoder of BERTScore, None if that is not asked for.
    """

    text: str
    references: tuple[str, ...]
    persona: str = ''
    bert: BertModel | None = None


@dataclass(frozen=True)
class MetricDefinition:
    """A metric of ParlAI's reports.

    :param name: its name, or with `family` the beginning that the names of several metrics share.
    :param definition: what it is, in a phrase, for model cards; '' for ParlAI's own, which ParlAI describes.
    :param lower_is_better: which way it improves; None where neither way is better.
    :param highest: the highest value that it can take: 1 for shares, 100 for percentages.
    :param needs_replies: whether the model must write (or rank) replies for it.
    :param of_reply: computes it for one reply, or returns None where the reply has no such metric.
    """

    name: str
    definition: str = ''
    lower_is_better: bool | None = None
    highest: float = math.inf
    needs_replies: bool = False
    of_reply: Callable[[ScoredReply], Metric | None] | None = None
    family: bool = False


# ---- metrics of replies -------------------------------------------------------------------------------------


def _mean(score: float | None) -> AverageMetric | None:
    """The mean over replies of a score from 0 to 1, as a percentage."""
    return None if score is None else AverageMetric(100 * score)


def _rouge(reply: ScoredReply, name: str) -> AverageMetric | None:
    return _mean(rouge(reply.text, reply.references)[name])


def _sacrebleu(reply: ScoredReply, order: int | None = None) -> CorpusBleu:
    return CorpusBleu.of(reply.text, reply.references, order)


def _persona_bleu(reply: ScoredReply, order: int | None = None) -> CorpusBleu | None:
    return CorpusBleu.of(reply.text, (reply.persona,), order) if reply.persona else None


def _distinct(reply: ScoredReply, orders: tuple[int, ...]) -> Distinct:
    return Distinct([reply.text], orders)


def _ngram_entropy(reply: ScoredReply, order: int) -> NgramEntropy:
    return NgramEntropy([reply.text], order)


def _bertscore(reply: ScoredReply, field: str) -> BertScore | None:
    return BertScore([(reply.text, reply.references)], reply.bert, field) if reply.bert else None


def _percentage(
    name: str,
    definition: str,
    of_reply: Callable[[ScoredReply], Metric | None],
    lower_is_better: bool | None = False,
) -> MetricDefinition:
    return MetricDefinition(name, definition, lower_is_better, 100.0, needs_replies=True, of_reply=of_reply)


REPLY_METRICS = (
    _percentage(
        'unigram_f1',
        'F1 of the words that white space separates, case and punctuation as they are, mean over replies',
        lambda reply: _mean(unigram_f1(reply.text, reply.references)),
    ),
    _percentage('sacrebleu', 'corpus BLEU of sacrebleu, case:mixed|eff:no|tok:13a|smooth:exp', _sacrebleu),
    *(
        _percentage(f'sacrebleu_{n}', f'{n}-gram precision of sacrebleu', partial(_sacrebleu, order=n))
        for n in range(1, ORDERS + 1)
    ),
    *(
        _percentage(
            name,
            f'ROUGE-{name[-1]} F-measure of rouge-score, no stemming, mean over replies',
            partial(_rouge, name=name),
        )
        for name in ROUGES
    ),
    *(
        _percentage(
            f'dist{n}',
            f'distinct {n}-grams as a share of all {n}-grams of all replies together, words by white space',
            partial(_distinct, orders=(n,)),
        )
        for n in (1, 2)
    ),
    _percentage('dist', 'mean of dist1 and dist2', partial(_distinct, orders=(1, 2))),
    *(
        MetricDefinition(
            f'ent{n}',
            f'entropy in nats of the {n}-grams of all replies together, words by white space',
            lower_is_better=False,
            needs_replies=True,
            of_reply=partial(_ngram_entropy, order=n),
        )
        for n in (2, 4)
    ),
    _percentage(
        'self_bleu',
        'BLEU of sacrebleu of each reply against all others, mean over replies; it grows with the number of replies',
        lambda reply: SelfBleu([reply.text]),
        lower_is_better=True,
    ),
    _percentage(
        'meteor',
        "METEOR of nltk on words by white space, mean over replies; absent where nltk's WordNet data is not installed",
        lambda reply: _mean(meteor(reply.text, reply.references)),
    ),
    *(
        _percentage(
            f'bertscore_{field}',
            f'BERTScore {title} of bert-score, no idf, no rescaling, mean over replies',
            partial(_bertscore, field=field),
        )
        for field, title in (('p', 'precision'), ('r', 'recall'), ('f1', 'F1'))
    ),
    # Copying more of the persona is neither better nor worse, so the overlap with it has no direction.
    _percentage(
        'persona_bleu',
        "corpus BLEU of the replies against their speaker's persona, its sentences joined to one reference",
        _persona_bleu,
        lower_is_better=None,
    ),
    *(
        _percentage(
            f'persona_bleu_{n}',
            f'{n}-gram precision of persona_bleu',
            partial(_persona_bleu, order=n),
            lower_is_better=None,
        )
        for n in range(1, ORDERS + 1)
    ),
    _percentage(
        'persona_f1',
        "F1 of the different content words of a reply and of its speaker's persona, English, mean over replies",
        lambda reply: _mean(persona_f1(reply.text, reply.persona) if reply.persona else None),
        lower_is_better=None,
    ),
)


# ---- all metrics --------------------------------------------------------------------------------------------

METRICS = (
    # The predictions.
    MetricDefinition('ppl', lower_is_better=True),
    MetricDefinition('loss', lower_is_better=True),
    MetricDefinition('token_acc', lower_is_better=False, highest=1.0),
    MetricDefinition('token_em', lower_is_better=False, highest=1.0),
    MetricDefinition(
        'ppl_word',
        'exp(NLL / words) of the labels, words by white space; the NLL includes the end-of-sequence token',
        lower_is_better=True,
    ),
    MetricDefinition(
        'ppl_byte',
        'exp(NLL / bytes) of the labels, bytes of the text in UTF-8; the NLL includes the end-of-sequence token',
        lower_is_better=True,
    ),
    # The objective.
    MetricDefinition('spt_loss', 'the objective that training minimises (eq. 6)', lower_is_better=True),
    MetricDefinition('nll', 'prompt NLL, summed over the K prompts (eq. 2)', lower_is_better=True),
    *(
        MetricDefinition(name, loss.metadata['logged'], lower_is_better=True)
        for name, loss in SptObjective.losses().items()
    ),
    # The optimizer.
    MetricDefinition('loss_scale', 'the dynamic loss scale of a float16 LLM'),
    MetricDefinition(
        'skipped_steps',
        'steps since the last report that were skipped because a loss or gradient was not finite',
        lower_is_better=True,
    ),
    # The use of the prompts.
    MetricDefinition('prompts_split', 'prompts that began again since the last report (`--adaptive-prompts`)'),
    MetricDefinition('prompt_usage_', 'share of contexts that select this prompt', highest=1.0, family=True),
    MetricDefinition(
        'prompt_usage_entropy',
        'entropy of the use of the prompts over its maximum ln K: 1 is even use, 0 is one prompt for all contexts',
        lower_is_better=False,
        highest=1.0,
    ),
    MetricDefinition(
        'selected_gain',
        'nats per token by which the selected prompt is better than the mean of all prompts, mean over examples',
        lower_is_better=False,
    ),
    MetricDefinition(
        'best_gain',
        'nats per token by which the best prompt in hindsight is better than the mean of all, mean over examples',
        lower_is_better=False,
    ),
    MetricDefinition(
        'prompt_information',
        'mutual information of context and prompt under the retriever, in nats: at most ln K, 0 if it tells no '
        'contexts apart',
    ),
    # The replies.
    *REPLY_METRICS,
    MetricDefinition(
        'c_score',
        'persona sentences that a reply entails less those that it contradicts, by an NLI model, mean over replies',
        lower_is_better=False,
        needs_replies=True,
    ),
    MetricDefinition(
        'mauve',
        'MAUVE of the replies against the labels, on the last hidden states of an LM',
        lower_is_better=False,
        highest=100.0,
        needs_replies=True,
    ),
    MetricDefinition('f1', lower_is_better=False, highest=1.0, needs_replies=True),
    MetricDefinition('bleu', lower_is_better=False, highest=1.0, needs_replies=True, family=True),
    MetricDefinition('rouge', lower_is_better=False, highest=1.0, needs_replies=True, family=True),
    MetricDefinition('accuracy', lower_is_better=False, highest=1.0, needs_replies=True),
    MetricDefinition('hits@', lower_is_better=False, highest=1.0, needs_replies=True, family=True),
    MetricDefinition('mean_rank', lower_is_better=True, needs_replies=True),
)
_BY_NAME = {metric.name: metric for metric in METRICS if not metric.family}
_FAMILIES = [metric for metric in METRICS if metric.family]

DEFINITIONS = {name: metric.definition for name, metric in _BY_NAME.items() if metric.definition}
"""Name → definition of every metric that is not ParlAI's own."""


def find(name: str) -> MetricDefinition | None:
    """The declaration of a metric, None where there is none. A metric of one task among several is `task/metric`."""
    name = name.rsplit('/', 1)[-1]
    return _BY_NAME.get(name) or next((family for family in _FAMILIES if name.startswith(family.name)), None)


def needs_replies(name: str) -> bool:
    """Whether the model must write replies for the metric; true for one that is not declared."""
    metric = find(name)
    return metric is None or metric.needs_replies


def lower_is_better(name: str) -> bool | None:
    """Which way the metric improves; None if neither way is better, or if the metric is not declared."""
    metric = find(name)
    return None if metric is None else metric.lower_is_better


def is_percentage(name: str) -> bool:
    """Whether the metric is on the 0–100 scale."""
    metric = find(name)
    return metric is not None and metric.highest == 100


def response_metrics(
    reply: str, references: Sequence[str], persona: str = '', bert: BertModel | None = None
) -> Iterator[tuple[str, Metric]]:
    """Name and metric of one reply, for every metric of replies that it has (see `ScoredReply`).

    Several references count as each metric defines it: the best one (F1, ROUGE, METEOR, BERTScore), or the matches in
    any of them (BLEU).
    """
    scored = ScoredReply(reply, tuple(references), persona, bert)
    for metric in REPLY_METRICS:
        if metric.of_reply and (value := metric.of_reply(scored)) is not None:
            yield metric.name, value
