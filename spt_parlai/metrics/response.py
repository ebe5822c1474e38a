"""One reply and its references → the paper's metrics by name, each on the 0–100 scale. Knows no model and no ParlAI option."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from parlai.core.metrics import AverageMetric, Metric

from spt_parlai.metrics.bertscore import FIELDS, BertModel, BertScore
from spt_parlai.metrics.corpus import CorpusBleu, Distinct
from spt_parlai.metrics.meteor import available as meteor_available
from spt_parlai.metrics.meteor import meteor
from spt_parlai.metrics.rouge import rouge
from spt_parlai.metrics.text import unigram_f1

BLEU_NAMES = ('', '_1', '_2', '_3', '_4')


def response_metrics(
    reply: str, references: Sequence[str], persona: str = '', bert: BertModel | None = None
) -> Iterator[tuple[str, Metric]]:
    """The reply against its references; with several, each metric's own rule counts: the best one (F1, ROUGE, METEOR,
    BERTScore), or the matches in any of them (BLEU).

    persona: the sentences of the speaker's persona, joined by blanks: one reference of its own; '' where there is none.
    """
    yield 'unigram_f1', AverageMetric(100 * unigram_f1(reply, references))
    for suffix, bleu in zip(BLEU_NAMES, CorpusBleu.all_of(reply, references)):
        yield f'sacrebleu{suffix}', bleu
    for name, score in rouge(reply, references).items():
        yield name, AverageMetric(100 * score)
    for name, orders in (('dist1', (1,)), ('dist2', (2,)), ('dist', (1, 2))):
        yield name, Distinct([reply], orders)
    if meteor_available():
        yield 'meteor', AverageMetric(100 * meteor(reply, references))
    for name, field in FIELDS.items() if bert else ():
        yield name, BertScore([(reply, tuple(references))], bert, field)
    if persona:
        for suffix, bleu in zip(BLEU_NAMES, CorpusBleu.all_of(reply, [persona])):
            yield f'persona_bleu{suffix}', bleu
