"""The declarations, and every metric of replies against the library that defines it, also as a sum of any parts."""

import itertools
import math
import pickle
import random
from collections import Counter

import nltk
import pytest
from parlai.core.metrics import METRICS_DISPLAY_DATA, F1Metric
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from spt_parlai.metrics.registry import (
    DEFINITIONS,
    METRICS,
    REPLY_METRICS,
    find,
    is_percentage,
    lower_is_better,
    needs_replies,
    response_metrics,
)
from spt_parlai.objective import SptObjective

PERSONA = 'i like tea. i have a dog and two cats .'


def added(parts):
    """The sum that ParlAI's Metrics.add makes, from left to right."""
    total = None
    for part in parts:
        total = part if total is None else total + part
    return total


@pytest.fixture(scope='session')
def each(pairs):
    """For every pair, its metrics by name."""
    return [dict(response_metrics(reply, [reference], PERSONA)) for reply, reference in pairs]


@pytest.fixture(scope='session')
def report(each):
    """name → value over all pairs."""
    return {name: added(metrics[name] for metrics in each).value() for name in each[0]}


# ---- the declarations ---------------------------------------------------------------------------------------


def test_every_metric_is_declared_once():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    parlais = {'ppl', 'loss', 'token_acc', 'token_em', 'f1', 'bleu', 'rouge', 'accuracy', 'hits@', 'mean_rank'}
    assert {metric.name for metric in METRICS if not metric.definition} == parlais


def test_every_loss_is_declared_by_the_objective():
    for name, loss in SptObjective.losses().items():
        assert DEFINITIONS[name] == loss.metadata['logged']
        assert lower_is_better(name) is True and not needs_replies(name) and not is_percentage(name)


def test_model_cards_define_every_metric_by_its_full_name():
    wanted = {metric.name for metric in METRICS if metric.definition and not metric.family}
    assert set(DEFINITIONS) == wanted and {'sacrebleu_3', 'nll', 'ppl_byte', 'best_gain'} < wanted
    assert all(METRICS_DISPLAY_DATA[name].description == text for name, text in DEFINITIONS.items())


@pytest.mark.parametrize(
    'names, lower, percentage, replies',
    [
        (('ppl', 'ppl_word', 'ppl_byte', 'loss', 'nll', 'spt_loss'), True, False, False),
        (('token_acc', 'token_em', 'prompt_usage_entropy', 'selected_gain', 'best_gain'), False, False, False),
        (('prompt_usage_0', 'prompt_usage_13', 'loss_scale'), None, False, False),
        (('skipped_steps',), True, False, False),
        (('f1', 'accuracy', 'hits@1', 'hits@10', 'bleu-4', 'rouge-L', 'rouge_1'), False, False, True),
        (('mean_rank',), True, False, True),
        (('unigram_f1', 'sacrebleu', 'sacrebleu_4', 'rouge1', 'rouge2', 'rougeL'), False, True, True),
        (
            ('bertscore_p', 'bertscore_r', 'bertscore_f1', 'dist', 'dist1', 'dist2', 'meteor', 'mauve'),
            False,
            True,
            True,
        ),
        (('ent2', 'ent4', 'c_score'), False, False, True),
        (('self_bleu',), True, True, True),
        (('persona_bleu', 'persona_bleu_1', 'persona_bleu_4', 'persona_f1'), None, True, True),
        (('other', 'ppl_other'), None, False, True),
    ],
)
@pytest.mark.parametrize('task', ['', 'convai2/', 'internal:a/b/'])
def test_what_is_known_of_a_metric(names, lower, percentage, replies, task):
    for name in names:
        said = lower_is_better(task + name), is_percentage(task + name), needs_replies(task + name)
        assert said == (lower, percentage, replies), name


def test_the_highest_value():
    assert [find(name).highest for name in ('token_acc', 'f1', 'hits@5', 'prompt_usage_0')] == [1, 1, 1, 1]
    assert [find(name).highest for name in ('dist', 'ppl', 'selected_gain')] == [100, math.inf, math.inf]
    assert find('other') is None


def test_every_metric_of_replies_is_reported(each):
    """All but those that need an encoder, or data that may not be installed."""
    conditional = {'meteor', 'bertscore_p', 'bertscore_r', 'bertscore_f1'}
    wanted = [metric.name for metric in REPLY_METRICS if metric.name not in conditional]
    assert [name for name in each[0] if name != 'meteor'] == wanted
    without_persona = [name for name in wanted if not name.startswith('persona')]
    assert [name for name, _ in response_metrics('a', ['b']) if name != 'meteor'] == without_persona


# ---- metrics of replies -------------------------------------------------------------------------------------


def test_there_are_enough_pairs_of_every_quality(pairs, report):
    assert len(pairs) >= 200
    assert 5 < report['sacrebleu'] < 60 and 10 < report['unigram_f1'] < 80 and 5 < report['rouge2'] < 60


def test_unigram_f1_is_parlais_without_its_normalisation(pairs, each, report):
    wanted = [100 * F1Metric._prec_recall_f1_score(reply.split(), reference.split())[2] for reply, reference in pairs]
    assert [metrics['unigram_f1'].value() for metrics in each] == pytest.approx(wanted, abs=1e-9)
    assert report['unigram_f1'] == pytest.approx(sum(wanted) / len(pairs))
    normalised = added(F1Metric.compute(reply, [reference]) for reply, reference in pairs).value()
    assert abs(report['unigram_f1'] - 100 * normalised) > 0.5


def test_bleu_is_sacrebleus(pairs, report):
    library = BLEU()
    said, wanted = zip(*pairs, strict=True)
    score = library.corpus_score(said, [wanted])
    assert 'case:mixed|eff:no|tok:13a|smooth:exp' in str(library.get_signature())
    assert report['sacrebleu'] == score.score
    assert [report[f'sacrebleu_{n}'] for n in (1, 2, 3, 4)] == score.precisions
    score = library.corpus_score(said, [[PERSONA] * len(said)])
    assert report['persona_bleu'] == score.score and report['persona_bleu_2'] == score.precisions[1]


@pytest.mark.parametrize('reply', ['', 'purple', 'tea dog .', 'i like tea.'])
def test_bleu_of_few_words_is_sacrebleus_too(reply):
    score = BLEU().corpus_score([reply], [[PERSONA]])
    metrics = dict(response_metrics(reply, [PERSONA]))
    assert metrics['sacrebleu'].value() == score.score and metrics['sacrebleu_4'].value() == score.precisions[3]


def test_rouge_is_rouge_scores(pairs, report):
    library = RougeScorer(['rouge1', 'rouge2', 'rougeL'], use_stemmer=False)
    scores = [library.score(reference, reply) for reply, reference in pairs]
    for name in ('rouge1', 'rouge2', 'rougeL'):
        assert report[name] == pytest.approx(100 * sum(score[name].fmeasure for score in scores) / len(scores))


def test_dist_counts_ngrams_over_all_replies(pairs, report):
    share = {}
    for n in (1, 2):
        counts = Counter(itertools.chain.from_iterable(nltk.ngrams(reply.split(), n) for reply, _ in pairs))
        share[n] = 100 * len(counts) / counts.total()
        assert report[f'dist{n}'] == pytest.approx(share[n])
    assert report['dist'] == pytest.approx((share[1] + share[2]) / 2)


def test_with_several_references_each_library_decides(pairs):
    replies = [reply for reply, _ in pairs]
    references = [[b, c] for (_, b), (_, c) in zip(pairs, pairs[1:] + pairs[:1], strict=True)]
    references[0] = references[0][:1]
    got = [dict(response_metrics(reply, texts)) for reply, texts in zip(replies, references, strict=True)]
    value = {name: added(metrics[name] for metrics in got).value() for name in got[0]}
    streams = [[texts[0] for texts in references], [texts[1] if len(texts) > 1 else None for texts in references]]
    assert value['sacrebleu'] == BLEU().corpus_score(replies, streams).score
    rouge = RougeScorer(['rougeL'])
    best = [
        rouge.score_multi(texts, reply)['rougeL'].fmeasure for reply, texts in zip(replies, references, strict=True)
    ]
    assert value['rougeL'] == pytest.approx(100 * sum(best) / len(best))
    f1 = [
        max(F1Metric._prec_recall_f1_score(r.split(), t.split())[2] for t in texts)
        for r, texts in zip(replies, references, strict=True)
    ]
    assert value['unigram_f1'] == pytest.approx(100 * sum(f1) / len(f1))


@pytest.mark.parametrize('seed', range(3))
def test_sums_are_the_same_in_any_order_split_and_process(each, report, seed):
    """As batches, tasks, log intervals and workers add them: parts of parts, pickled, their values read on the way."""
    draw = random.Random(seed)
    for name, value in report.items():
        parts = [metrics[name] for metrics in each]
        draw.shuffle(parts)
        while len(parts) > 1:
            at = draw.randrange(len(parts) - 1)
            group = [parts.pop(at) for _ in range(min(draw.choice((2, 3, 50)), len(parts) - at))]
            seen = [part.value() for part in group[:2]]
            total = added(group)
            assert [part.value() for part in group[:2]] == seen, name
            parts.insert(
                draw.randrange(len(parts) + 1), pickle.loads(pickle.dumps(total)) if draw.random() < 0.3 else total
            )
        assert parts[0].value() == pytest.approx(value, rel=1e-9), name
