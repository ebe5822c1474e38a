"""Perplexities per word and per byte."""

import math

import pytest
from parlai.core.metrics import AverageMetric

from spt_parlai.metrics.perplexity import Perplexity, nll_of, perplexities


def test_perplexities_per_word_and_byte_count_the_end_in_the_loss_alone():
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
