"""The scores of candidates, against plain float64 versions."""

import math

import pytest
import torch

from spt_parlai.metrics.ranking import consensus, content_words, mixture_likelihood, persona_overlap


def test_the_mixture_is_of_whole_replies_and_per_token():
    g = torch.Generator().manual_seed(0)
    log_probs = -30 * torch.rand(3, 5, generator=g)
    weights = torch.rand(3, generator=g).softmax(0)
    lengths = torch.tensor([1, 2, 7, 9, 30])
    naive = [
        math.log(sum(float(weights[k]) * math.exp(float(log_probs[k, c])) for k in range(3))) / int(lengths[c])
        for c in range(5)
    ]
    assert mixture_likelihood(log_probs, weights.log(), lengths).tolist() == pytest.approx(naive, rel=1e-6)
    far = mixture_likelihood(torch.tensor([[-5000.0], [-5001.0]]), torch.tensor([0.5, 0.5]).log(), torch.tensor([1]))
    assert float(far) == pytest.approx(-5000 + math.log((1 + math.exp(-1)) / 2), abs=1e-3)
    alone = mixture_likelihood(log_probs[:1], torch.zeros(1), lengths)
    torch.testing.assert_close(alone, log_probs[0].double() / lengths)


def test_consensus_is_the_mean_f1_with_the_others():
    replies = ['i like tea .', 'i like tea .', 'i like red wine .', '', 'no']

    def f1(a, b):
        a, b = a.split(), b.split()
        common = sum(min(a.count(w), b.count(w)) for w in set(a))
        return 2 * common / (len(a) + len(b)) if common else 0.0

    naive = [sum(f1(a, b) for j, b in enumerate(replies) if j != i) / 4 for i, a in enumerate(replies)]
    assert consensus(replies) == pytest.approx(naive) and naive[0] == max(naive) and consensus(['alone']) == [0.0]


def test_persona_overlap_counts_different_content_words():
    persona = "i have two dogs . i'm a nurse ."
    assert content_words("I'm a Nurse, and I've got 2 dogs!") == {'nurse', 'got', 'dogs'}
    assert persona_overlap('the dogs and the dogs love a nurse', persona) == pytest.approx(2 / 3)
    assert persona_overlap('i am', persona) == persona_overlap('', persona) == persona_overlap('tea', '') == 0
