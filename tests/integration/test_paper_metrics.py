"""`parlai eval_model` reports the paper's metrics for any agent, whatever the batches and tasks."""

import itertools
import json
import math
import sys

import pytest
from helpers.plain.agents import EPISODES
from helpers.runs import SAMPLE, evaluate, train
from parlai.core.metrics import F1Metric
from parlai.scripts.eval_model import EvalModel
from sacrebleu.metrics import BLEU
from typer.testing import CliRunner

from spt_parlai.cli import app
from spt_parlai.errors import UsageError

PERPLEXITIES = {'ppl_word', 'ppl_byte'}
OF_REPLIES = {
    'unigram_f1',
    'rouge1',
    'rouge2',
    'rougeL',
    'dist1',
    'dist2',
    'dist',
    'sacrebleu',
    'persona_bleu',
    'persona_f1',
    'ent2',
    'ent4',
    'self_bleu',
    *(f'{name}_{n}' for name in ('sacrebleu', 'persona_bleu') for n in (1, 2, 3, 4)),
}


@pytest.fixture(scope='module')
def model_file(tiny_llms, tmp_path_factory):
    path = tmp_path_factory.mktemp('metrics') / 'm'
    # whole contexts: replies differ
    train(path, tiny_llms.opt, max_train_steps=1, prompt_init='embedding-scale', text_truncate=None)
    return path


@pytest.fixture(scope='module')
def evaluated(model_file, tmp_path_factory):
    """The report of one evaluation, and its turns: (message, reply)."""
    log = tmp_path_factory.mktemp('log') / 'log'
    report = evaluate(model_file, world_logs=str(log))
    return report, [json.loads(line)['dialog'] for line in log.with_suffix('.jsonl').read_text().splitlines()]


def plain(**options):
    report = EvalModel.main(
        task='helpers.plain.agents', model='helpers.plain.agents:PlainAgent', datatype='valid', **options
    )
    return {name: float(value) for name, value in report.items()}


def test_the_report_is_that_of_the_log(evaluated):
    report, dialogues = evaluated
    turns = list(itertools.chain.from_iterable(dialogues))
    said, wanted = [act['text'] for _, act in turns], [message['eval_labels'][0] for message, _ in turns]
    assert len(turns) == report['exs'] == 108 and len(set(said)) > 5
    bleu = BLEU().corpus_score(said, [wanted])
    assert report['sacrebleu'] == bleu.score and report['sacrebleu_1'] == bleu.precisions[0] > 0
    f1 = [
        F1Metric._prec_recall_f1_score(reply.split(), label.split())[2]
        for reply, label in zip(said, wanted, strict=True)
    ]
    assert report['unigram_f1'] == pytest.approx(100 * sum(f1) / len(f1))
    words = [word for reply in said for word in reply.split()]
    assert report['dist1'] == pytest.approx(100 * len(set(words)) / len(words))
    personas = []
    for dialogue in dialogues:
        lines = [line for line in dialogue[0][0]['text'].split('\n') if line.startswith('your persona:')]
        personas += [' '.join(line.removeprefix('your persona: ') for line in lines)] * len(dialogue)
    assert all(personas) and report['persona_bleu_1'] == BLEU().corpus_score(said, [personas]).precisions[0]


def test_perplexities_are_those_of_whole_labels(evaluated):
    report, dialogues = evaluated
    nll = words = size = cut = 0
    for message, act in itertools.chain.from_iterable(dialogues):
        metrics, label = act['metrics'], message['eval_labels'][0]
        if metrics['ltrunc']:  # of 24 tokens
            cut += 1
            assert not PERPLEXITIES & set(metrics)
            continue
        nll, words, size = nll + metrics['loss'] * metrics['llen'], words + len(label.split()), size + len(label)
        assert metrics['ppl_word'] == pytest.approx(math.exp(metrics['loss'] * metrics['llen'] / len(label.split())))
    assert 0 < cut < 108
    assert report['ppl_word'] == pytest.approx(math.exp(nll / words)) and report['ppl_byte'] == pytest.approx(
        math.exp(nll / size)
    )


def test_a_turn_logs_its_own_scores_and_none_of_a_corpus(evaluated):
    for _, act in itertools.chain.from_iterable(evaluated[1]):
        assert {'unigram_f1', 'rouge1', 'rouge2', 'rougeL', 'f1'} <= set(act['metrics'])
        assert not {'sacrebleu', 'dist1', 'persona_bleu'} & set(act['metrics'])


@pytest.mark.parametrize(
    'options',
    [{'batchsize': 1}, {'batchsize': 32}, {'batchsize': 6, 'dynamic_batching': 'full'}, {'datatype': 'valid:stream'}],
)
def test_however_the_data_is_batched(model_file, evaluated, options):
    report = evaluate(model_file, **options)
    assert {name: report[name] for name in OF_REPLIES} == pytest.approx(
        {name: evaluated[0][name] for name in OF_REPLIES}
    )
    assert [report[name] for name in PERPLEXITIES] == pytest.approx(
        [evaluated[0][name] for name in PERPLEXITIES], rel=1e-4
    )


def test_without_replies_perplexities_alone(model_file, evaluated):
    report = evaluate(model_file, skip_generation=True)
    assert not OF_REPLIES & set(report) and report['ppl_word'] == pytest.approx(evaluated[0]['ppl_word'], rel=1e-4)
    report = evaluate(model_file, num_examples=8, paper_metrics=False)
    assert not (OF_REPLIES | PERPLEXITIES) & set(report) and 'f1' in report


def test_validation_pays_only_where_its_metric_asks(tiny_llms, tmp_path):
    options = {
        'max_train_steps': 3,
        'validation_every_n_steps': 1,
        'prompt_init': 'embedding-scale',
        'label_truncate': 60,
    }
    valid, _ = train(tmp_path / 'a', tiny_llms.opt, **options)
    assert PERPLEXITIES <= set(valid) and not OF_REPLIES & set(valid)
    valid, test = train(tmp_path / 'b', tiny_llms.opt, validation_metric='sacrebleu_1', **options)
    assert OF_REPLIES | PERPLEXITIES <= set(valid) & set(test)
    stats = json.loads((tmp_path / 'b.trainstats').read_text())
    assert len(stats['valid_reports']) >= 2 and not PERPLEXITIES & set(stats['train_reports'][-1])
    for given in ({'trim_responses': True}, {'bertscore': 'some/encoder'}):
        with pytest.raises(UsageError, match='it belongs to an evaluation that scores replies'):
            train(tmp_path / 'c', tiny_llms.opt, **options, **given)


def test_several_tasks_average_or_pool(model_file):
    tasks = f'{SAMPLE},integration_tests:nocandidate'
    macro, micro = (evaluate(model_file, task=tasks, num_examples=48, aggregate_micro=pool) for pool in (False, True))
    for name in ('unigram_f1', 'dist1', 'sacrebleu_1', 'ppl_word'):
        own = [macro[f'{task}/{name}'] for task in tasks.split(',')]
        assert (
            macro[name] == pytest.approx(sum(own) / 2) and [micro[f'{task}/{name}'] for task in tasks.split(',')] == own
        )
    assert micro['dist1'] != macro['dist1'] and micro['ppl_word'] != macro['ppl_word']
    assert (
        macro['persona_bleu_1'] == macro[f'{SAMPLE}/persona_bleu_1']
        and f'{tasks.split(",")[1]}/persona_bleu_1' not in macro
    )


# ---- any agent, any task ------------------------------------------------------------------------------------


@pytest.mark.parametrize('batchsize', [1, 2])
def test_an_agent_of_another_package(batchsize):
    report = plain(batchsize=batchsize)
    labelled = [
        (text.split('\n')[-1] + ' R: and so on', labels) for episode in EPISODES for text, labels in episode if labels
    ]
    assert report['exs'] == len(labelled) == 5 and OF_REPLIES <= set(report) and not PERPLEXITIES & set(report)
    f1 = [
        max(F1Metric._prec_recall_f1_score(reply.split(), label.split())[2] for label in labels)
        for reply, labels in labelled
    ]
    assert report['unigram_f1'] == pytest.approx(100 * sum(f1) / 5)
    references = [
        [labels[0] for _, labels in labelled],
        [labels[1] if len(labels) > 1 else None for _, labels in labelled],
    ]
    assert report['sacrebleu_2'] == BLEU().corpus_score([reply for reply, _ in labelled], references).precisions[1]
    with_persona = [labelled[i][0] for i in (0, 1, 3)]
    score = BLEU().corpus_score(with_persona, [['i sing. i cook.'] * 2 + ['i came late.']])
    assert report['persona_bleu_1'] == score.precisions[0]


def test_trimmed_replies_count_for_the_papers_metrics_alone():
    whole, trimmed = plain(), plain(trim_responses=True)
    labelled = [(text.split('\n')[-1], labels) for episode in EPISODES for text, labels in episode if labels]
    f1 = [
        max(F1Metric._prec_recall_f1_score(reply.split(), label.split())[2] for label in labels)
        for reply, labels in labelled
    ]
    assert trimmed['unigram_f1'] == pytest.approx(100 * sum(f1) / 5) and trimmed['unigram_f1'] != pytest.approx(
        whole['unigram_f1']
    )
    assert (
        trimmed['f1'] == whole['f1']
        and trimmed['accuracy'] == whole['accuracy'] == 0
        and trimmed['dist1'] != whole['dist1']
    )


def test_bertscore_of_any_agent(tiny_llms):
    pytest.importorskip('bert_score')
    report = plain(bertscore=tiny_llms.bart, bertscore_layer=1)
    assert (
        0 < report['bertscore_p'] < 100
        and 0 < report['bertscore_r'] < 100
        and report['bertscore_p'] != report['bertscore_r']
    )


def test_options_are_refused_for_any_agent():
    with pytest.raises(UsageError, match='--bertscore no/such: no such folder'):
        plain(bertscore='no/such', bertscore_layer=1)


def test_parlais_commands_with_this_package_loaded(tmp_path, monkeypatch):
    """An agent and a task of ParlAI's own: nothing on this command line but the command itself is of this package."""
    monkeypatch.setattr(sys, 'argv', ['spt'])  # ParlAI reads it, and so it is set for it
    options = '-m repeat_query -t integration_tests:nocandidate -dt valid -bs 8 --trim-responses true'.split()
    done = CliRunner().invoke(
        app, ['parlai', 'eval_model', *options, '--report-filename', str(tmp_path / 'report.json')]
    )
    assert done.exit_code == 0, done.output[-2000:]
    report = json.loads((tmp_path / 'report.json').read_text())['report']
    assert (
        report['unigram_f1'] == pytest.approx(100)
        and report['sacrebleu_1'] == pytest.approx(100)
        and 'persona_bleu' not in report
    )
