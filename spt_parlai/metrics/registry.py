"""What each of the paper's metrics is, in one line: ParlAI shows it in model cards, the README in its table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from parlai.core.metrics import AverageMetric, Metric

from spt_parlai.metrics.bertscore import FIELDS, BertModel, BertScore
from spt_parlai.metrics.corpus import CorpusBleu, Distinct
from spt_parlai.metrics.reply import meteor, meteor_available, rouge, unigram_f1

DEFINITIONS = {
    'unigram_f1': 'F1 of the words that white space separates, case and punctuation as they are, mean over replies',
    'sacrebleu': 'corpus BLEU of sacrebleu, case:mixed|eff:no|tok:13a|smooth:exp',
    'sacrebleu_1': 'its unigram precision; sacrebleu_2 to sacrebleu_4 likewise',
    'rouge1': 'ROUGE-1 F-measure of rouge-score, no stemming, mean over replies',
    'rouge2': 'ROUGE-2 likewise',
    'rougeL': 'ROUGE-L likewise',
    'bertscore_p': 'BERTScore precision of bert-score, no idf, no rescaling, mean over replies',
    'bertscore_r': 'BERTScore recall likewise',
    'bertscore_f1': 'BERTScore F1 likewise',
    'dist1': 'distinct unigrams over all unigrams of all replies together, words by white space',
    'dist2': 'distinct bigrams likewise, none across two replies',
    'dist': 'mean of dist1 and dist2',
    'meteor': "METEOR of nltk on words by white space, mean over replies; only where nltk's WordNet data is installed",
    'persona_bleu': "corpus BLEU of the replies against their speaker's persona, its sentences joined to one reference",
    'persona_bleu_1': 'its unigram precision; persona_bleu_2 to persona_bleu_4 likewise',
    'ppl_word': "exp(NLL / words) of the labels, words by white space; the NLL has the end-of-sequence token's in it",
    'ppl_byte': 'exp(NLL / bytes) likewise, bytes of the text in UTF-8',
}


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
