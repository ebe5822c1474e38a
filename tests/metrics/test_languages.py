"""Metrics that do not see the words of a language are named."""

import pytest
from parlai.scripts.eval_model import EvalModel
from parlai.utils import logging, misc

from spt_parlai.metrics.languages import meaningless_for
from spt_parlai.metrics.registry import response_metrics

WORDS, ROUGE = 'take each run of such characters for one word', 'score 0 there'


@pytest.mark.parametrize(
    'text, warned',
    [
        ('i like tea.', None),
        ('größe, café, ñandú', None),
        ('42 !', None),
        ('', None),
        ('😀 …', None),
        ('я люблю чай.', ROUGE),
        ('मुझे चाय पसंद है', ROUGE),
        ('저는 차를 좋아해요', ROUGE),
        ('אני אוהב תה', ROUGE),
        ('我喜欢喝茶。', WORDS),
        ('お茶が好き', WORDS),
        ('ฉันชอบชา', WORDS),
        ('我喜欢 rock', WORDS),
    ],
)
def test_metrics_that_do_not_see_the_words(text, warned):
    sentence = meaningless_for(text)
    assert (sentence is None) is (warned is None) and (warned or '') in (sentence or '')
    scores = {name: float(metric.value()) for name, metric in response_metrics(text, [text])}
    if warned is ROUGE:
        assert scores['rouge1'] == 0 and scores['unigram_f1'] == 100  # of a reply that is right
    if warned is None and any(map(str.isalnum, text)):
        assert scores['rouge1'] == 100


def test_an_evaluation_warns_once(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(misc, '_seen_logs', set())
    monkeypatch.setattr(logging, 'warning', warnings.append)
    file = tmp_path / 'chat.txt'
    file.write_text('text:привет\tlabels:я люблю чай.\ntext:и?\tlabels:нет.\tepisode_done:True\n')
    options = {'fromfile_datapath': str(file), 'fromfile_datatype_extension': False, 'datapath': str(tmp_path)}
    EvalModel.main(model='repeat_label', task='fromfile:parlaiformat', **options)
    assert len([warning for warning in warnings if ROUGE in warning]) == 1
