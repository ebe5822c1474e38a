"""Each metric of replies against the library or script that defines it, and sums in any order, split and process."""

import itertools
import math
import pickle
import random
from collections import Counter

import nltk
import pytest
from parlai.core.metrics import F1Metric
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from spt_parlai.metrics import reply
from spt_parlai.metrics.corpus import Distinct
from spt_parlai.metrics.perplexity import Perplexity, nll_of, perplexities
from spt_parlai.metrics.registry import response_metrics
from spt_parlai.metrics.reply import trim

PERSONA = 'i like tea. i have a dog and two cats .'


def added(parts):
    """What Metrics.add makes of them, from left to right."""
    total = None
    for part in parts:
        total = part if total is None else total + part
    return total


@pytest.fixture(scope='session')
def each(pairs):
    """For every pair its metrics by name."""
    return [dict(response_metrics(reply, [reference], PERSONA)) for reply, reference in pairs]


@pytest.fixture(scope='session')
def report(each):
    """name → value over all pairs."""
    return {name: added(metrics[name] for metrics in each).value() for name in each[0]}


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
    said, wanted = zip(*pairs)
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
    assert Distinct(['yes', ''], [2]).value() == 0 and Distinct([], [1]).value() == 0


def test_with_several_references_each_library_decides(pairs):
    replies, references = (
        [reply for reply, _ in pairs],
        [[b, c] for (_, b), (_, c) in zip(pairs, pairs[1:] + pairs[:1])],
    )
    references[0] = references[0][:1]
    got = [dict(response_metrics(reply, texts)) for reply, texts in zip(replies, references)]
    value = {name: added(metrics[name] for metrics in got).value() for name in got[0]}
    streams = [[texts[0] for texts in references], [texts[1] if len(texts) > 1 else None for texts in references]]
    assert value['sacrebleu'] == BLEU().corpus_score(replies, streams).score
    rouge = RougeScorer(['rougeL'])
    best = [rouge.score_multi(texts, reply)['rougeL'].fmeasure for reply, texts in zip(replies, references)]
    assert value['rougeL'] == pytest.approx(100 * sum(best) / len(best))
    f1 = [
        max(F1Metric._prec_recall_f1_score(r.split(), t.split())[2] for t in texts)
        for r, texts in zip(replies, references)
    ]
    assert value['unigram_f1'] == pytest.approx(100 * sum(f1) / len(f1))


@pytest.mark.parametrize('seed', range(3))
def test_sums_are_the_same_in_any_order_split_and_process(each, report, seed):
    """As batches, tasks, log intervals and workers add them: parts of parts, sent between processes, looked at on the way."""
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


def test_a_sum_leaves_what_it_was_made_of_alone():
    a, b, c = (Distinct([text], [1]) for text in ('x x', 'x y', 'z'))
    ab = a + b
    abc, abb = ab + c, ab + b  # two sums that go on from the same one
    assert [m.value() for m in (a, b, c, ab)] == [50, 100, 100, 50]
    assert abc.value() == 60 and abb.value() == pytest.approx(100 * 2 / 6) and (ab + ab).value() == 25
    assert (None + a) is a and (a + None) is a


def test_adding_up_takes_linear_time():
    """Ten thousand replies, one after the other: with a copy for each sum it would be 50 million texts."""
    total = None
    for i in range(10_000):
        total = Distinct([f'w{i}'], [1]) + total if total is None else total + Distinct([f'w{i}'], [1])
    assert total.value() == 100 and len(total.items()) == 10_000


# ---- trimming, perplexity -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'reply, kept',
    [
        ('i am fine . Q: and you ? R: ok', 'i am fine .'),
        ('yes R: no', 'yes'),
        ('ok . Summary: they talk', 'ok .'),
        ('one\ntwo', 'one'),
        ('note : this', 'note'),
        ('at 5:30', 'at 5'),
        (' no cut ', 'no cut'),
        ('R: at once', ''),
        ('', ''),
        ('NASA R&R', 'NASA R&R'),
    ],
)
def test_trimmed_at_the_first_mark(reply, kept):
    assert trim(reply) == kept


def test_perplexities_per_word_and_byte_count_the_end_in_the_loss_alone():
    from parlai.core.metrics import AverageMetric

    text = 'i like  café .'  # 4 words, 15 bytes
    metrics = {'loss': AverageMetric(12.0, 7), 'ltrunc': AverageMetric(0.0)}
    named = dict(perplexities(nll_of(metrics, [text]), text))
    assert named['ppl_word'].value() == pytest.approx(math.exp(12 / 4)) and named['ppl_byte'].value() == pytest.approx(
        math.exp(12 / 15)
    )
    both = named['ppl_word'] + dict(perplexities(6.0, 'two words'))['ppl_word']
    assert both.value() == pytest.approx(math.exp(18 / 6))
    assert (
        nll_of(metrics, [text, 'another']) is None and nll_of({**metrics, 'ltrunc': AverageMetric(1.0)}, [text]) is None
    )
    assert nll_of({}, [text]) is None and Perplexity(2000.0, 1).value() == math.inf


# ---- METEOR ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def nltk_data(tmp_path, monkeypatch):
    """An empty folder, the only one in which nltk finds its data."""
    monkeypatch.setattr(nltk.data, 'path', [str(tmp_path)])
    loader = nltk.corpus.util.LazyCorpusLoader('wordnet', nltk.corpus.reader.WordNetCorpusReader, None)
    monkeypatch.setattr(nltk.corpus, 'wordnet', loader)
    reply.available.cache_clear()
    yield tmp_path
    reply.available.cache_clear()


@pytest.fixture
def wordnet(nltk_data):
    """A WordNet in Princeton's format with one synset: dog, hound."""
    folder = nltk_data / 'corpora' / 'wordnet'
    folder.mkdir(parents=True)
    for part in ('noun', 'verb', 'adj', 'adv'):
        index = ''.join(f'{word} n 1 0 1 0 00000000  \n' for word in ('dog', 'hound'))
        (folder / f'data.{part}').write_text(
            '00000000 00 n 02 dog 0 hound 0 000 | an animal  \n' if part == 'noun' else ''
        )
        (folder / f'index.{part}').write_text(index if part == 'noun' else '')
        (folder / f'{part}.exc').write_text('')
    (folder / 'index.sense').write_text(''.join(f'{word}%1:00:00:: 00000000 1 0\n' for word in ('dog', 'hound')))
    (folder / 'lexnames').write_text('00\tnoun.animal\t1\n')
    return nltk.corpus.wordnet


def test_meteor_is_left_out_without_wordnet(nltk_data):
    assert 'meteor' not in dict(response_metrics('a dog', ['a hound']))


@pytest.mark.filterwarnings('ignore:The multilingual functions')
def test_meteor_is_nltks_with_wordnet(wordnet, pairs):
    from nltk.translate.meteor_score import meteor_score

    got = added(
        dict(response_metrics(reply, [reference, 'a dog']))['meteor'] for reply, reference in pairs[:200]
    ).value()
    wanted = [
        meteor_score([reference.split(), ['a', 'dog']], reply.split(), wordnet=wordnet)
        for reply, reference in pairs[:200]
    ]
    assert got == pytest.approx(100 * sum(wanted) / len(wanted)) and got > 1
    synonym, other = (dict(response_metrics(reply, ['a dog']))['meteor'].value() for reply in ('a hound', 'a cat'))
    assert synonym > other
