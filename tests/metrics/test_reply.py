"""Where a reply is cut, and METEOR with and without nltk's data. The scores themselves are in `test_registry`."""

import nltk
import pytest

from spt_parlai.metrics.registry import response_metrics
from spt_parlai.metrics.reply import meteor_available, persona_f1, trim


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


@pytest.fixture
def nltk_data(tmp_path, monkeypatch):
    """An empty folder, the only one in which nltk looks for its data."""
    monkeypatch.setattr(nltk.data, 'path', [str(tmp_path)])
    loader = nltk.corpus.util.LazyCorpusLoader('wordnet', nltk.corpus.reader.WordNetCorpusReader, None)
    monkeypatch.setattr(nltk.corpus, 'wordnet', loader)
    meteor_available.cache_clear()
    yield tmp_path
    meteor_available.cache_clear()


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

    metrics = [dict(response_metrics(reply, [reference, 'a dog']))['meteor'] for reply, reference in pairs[:200]]
    got = sum(metrics[1:], metrics[0]).value()
    wanted = [
        meteor_score([reference.split(), ['a', 'dog']], reply.split(), wordnet=wordnet)
        for reply, reference in pairs[:200]
    ]
    assert got == pytest.approx(100 * sum(wanted) / len(wanted)) and got > 1
    synonym, other = (dict(response_metrics(reply, ['a dog']))['meteor'].value() for reply in ('a hound', 'a cat'))
    assert synonym > other


def test_persona_f1_is_that_of_different_content_words():
    persona = "i have two dogs and a cat . i'm a nurse ."
    assert persona_f1('my dogs , my DOGS bark', persona) == pytest.approx(2 * 1 / (2 + 3))  # dogs, cat, nurse
    assert persona_f1('i am a', persona) == 0 == persona_f1('', '')
    metrics = dict(response_metrics('my dogs bark', ['x'], persona))
    assert metrics['persona_f1'].value() == pytest.approx(40) and 'persona_f1' not in dict(response_metrics('a', ['b']))
