"""BERTScore against bert-score itself, with tiny random encoders of three families, and encoders that are refused."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from parlai.core.teachers import create_task_agent_from_taskname
from parlai.scripts.eval_model import EvalModel
from transformers import AutoTokenizer

from spt_parlai.errors import UsageError
from spt_parlai.metrics.bertscore import BertModel, BertScore, best_layer, find_encoder, scorer
from spt_parlai.metrics.registry import response_metrics
from spt_parlai.options.validate import chosen_bert

bert_score = pytest.importorskip('bert_score')
NAMES = ('bertscore_p', 'bertscore_r', 'bertscore_f1')


@pytest.fixture(scope='module')
def limited(encoders, tmp_path_factory):
    """The same encoders with a longest text in their tokenizers' files, without which bert-score itself fails here."""
    folders = {}
    for name, folder in encoders.items():
        folders[name] = str(tmp_path_factory.mktemp(name) / name)
        shutil.copytree(folder, folders[name])
        AutoTokenizer.from_pretrained(folder, model_max_length=40).save_pretrained(folders[name])
    return folders


def on_cpu(folder, layer):
    return BertModel(folder, layer, 'cpu')


def scored(pairs, model, parts=1):
    """name → value. Metrics are added up within each part, then over the parts as other processes would send them."""
    totals = []
    for i in range(parts):
        each = [dict(response_metrics(reply, texts, bert=model)) for reply, texts in pairs[i::parts]]
        totals.append({name: sum((metrics[name] for metrics in each[1:]), each[0][name]) for name in NAMES})
    if parts > 1:
        totals = pickle.loads(pickle.dumps(totals))
        assert all(not total['bertscore_p'].items() for total in totals)  # each process scores its own share
    return {name: sum((total[name] for total in totals[1:]), totals[0][name]).value() for name in NAMES}


@pytest.mark.parametrize('family', ['bert', 'roberta', 'deberta'])
def test_it_is_bert_scores(encoders, limited, pairs, family):
    full = [(reply, reference) for reply, reference in pairs if reply][:240] + [('tea ' * 60, 'dog ' * 70)]
    wanted = bert_score.score(
        *map(list, zip(*full, strict=True)), model_type=limited[family], num_layers=2, device='cpu'
    )
    wanted = {name: 100 * float(column.double().mean()) for name, column in zip(NAMES, wanted, strict=True)}
    got = scored([(reply, [reference]) for reply, reference in full], on_cpu(encoders[family], 2))
    assert got == pytest.approx(wanted, abs=1e-4)
    assert max(got.values()) < 99
    shares = scored([(reply, [reference]) for reply, reference in full], on_cpu(encoders[family], 2), parts=3)
    assert shares == pytest.approx(wanted, abs=1e-4)


def test_of_several_references_the_best_counts(encoders, limited):
    replies, references = ['a dog .', 'i like tea'], [['two cats', 'a dog !', 'no'], ['tea']]
    wanted = bert_score.score(replies, references, model_type=limited['bert'], num_layers=3, device='cpu')
    got = scored(list(zip(replies, references, strict=True)), on_cpu(encoders['bert'], 3))
    assert got == pytest.approx(
        {name: 100 * float(column.mean()) for name, column in zip(NAMES, wanted, strict=True)}, abs=1e-4
    )


def test_empty_texts_score_nothing(encoders):
    model = on_cpu(encoders['bert'], 1)
    assert (
        scored([('', ['yes'])], model)
        == scored([(' ', ['yes'])], model)
        == scored([('yes', [''])], model)
        == dict.fromkeys(NAMES, 0.0)
    )
    half = scored([('', ['yes']), ('yes', ['yes'])], model)
    assert half == pytest.approx(dict.fromkeys(NAMES, 50.0), abs=1e-3)


def test_pairs_are_scored_once_and_late(encoders, monkeypatch):
    model = on_cpu(encoders['bert'], 2)
    scorer.cache_clear()
    first = [BertScore([(f'reply {i}', ('yes',))], model, 'f1') for i in range(5)]
    total = sum(first[1:], first[0])
    assert scorer.cache_info().currsize == 0  # nothing is loaded, let alone computed
    asked = []
    library = scorer(model)._scorer
    score = library.score
    monkeypatch.setattr(
        library, 'score', lambda replies, *rest, **named: asked.append(len(replies)) or score(replies, *rest, **named)
    )
    before = total.value()
    assert total.value() == before and asked == [5]
    more = total + BertScore([('reply 3', ('yes',)), ('another', ('yes',))], model, 'f1')
    assert more.value() != before and total.value() == before and asked == [5, 1]


# ---- finding an encoder, and the options -------------------------------------------------------------------


def test_layers_are_those_of_bert_score(encoders, tmp_path):
    with pytest.raises(UsageError, match='knows no best layer for it; give one with --bertscore-layer'):
        chosen_bert({'bertscore': encoders['bert']})
    with pytest.raises(UsageError, match='--bertscore-layer 4: .* has layers 1 to 3'):
        chosen_bert({'bertscore': encoders['bert'], 'bertscore_layer': 4})
    folder = shutil.copytree(encoders['deberta'], tmp_path / 'deberta-xlarge-mnli')
    assert best_layer(str(folder)) == best_layer('microsoft/deberta-xlarge-mnli') == 40  # found by the folder's name
    with pytest.raises(UsageError, match='--bertscore-layer 40: .* has layers 1 to 3'):
        chosen_bert({'bertscore': str(folder)})
    assert chosen_bert({'bertscore': 'none'}) is chosen_bert({}) is None
    assert chosen_bert({'bertscore': encoders['bert'], 'bertscore_layer': 2, 'no_cuda': True}).device == 'cpu'
    assert (
        torch.cuda.is_available() or chosen_bert({'bertscore': encoders['bert'], 'bertscore_layer': 2}).device == 'cpu'
    )


def test_encoders_that_cannot_work_are_refused(encoders, tmp_path, monkeypatch):
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'broken' / 'config.json').write_text('{')
    for name, reason in (
        (tmp_path / 'empty', 'no config.json'),
        (tmp_path / 'broken', 'no model that can be loaded'),
        ('no/such', 'no such folder'),
    ):
        with pytest.raises(ValueError, match=reason) as error:
            find_encoder(str(name))
        assert '\n' not in str(error.value) and '--' not in str(error.value)
        with pytest.raises(UsageError, match=f'^--bertscore {name}: .*{reason}'):
            chosen_bert({'bertscore': str(name), 'bertscore_layer': 1})
    (tmp_path / 'weightless').mkdir()
    (tmp_path / 'weightless' / 'config.json').write_text((Path(encoders['bert']) / 'config.json').read_text())
    with pytest.raises(ValueError, match='^the encoder could not be loaded .*; give one such as ') as error:
        scored([('a', ['b'])], on_cpu(str(tmp_path / 'weightless'), 1))
    assert '--' not in str(error.value)
    with pytest.raises(UsageError, match='--paper-metrics false leaves out'):
        chosen_bert({'bertscore': encoders['bert'], 'bertscore_layer': 1, 'paper_metrics': False})
    find_encoder.cache_clear()
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UsageError, match=r"bert-score is not installed; pip install 'spt_parlai\[bertscore\]'"):
        chosen_bert({'bertscore': encoders['bert'], 'bertscore_layer': 1})


def test_an_encoder_that_does_not_load_is_refused_before_the_first_reply(encoders, tmp_path):
    (tmp_path / 'config.json').write_text((Path(encoders['bert']) / 'config.json').read_text())
    asked = {'task': 'spt_parlai.tasks.sample', 'bertscore': str(tmp_path), 'bertscore_layer': 1}
    opt = EvalModel.setup_args().parse_kwargs(model='fixed_response', fixed_response='hi', datatype='valid', **asked)
    with pytest.raises(UsageError, match=f'^--bertscore {tmp_path}: the encoder could not be loaded'):
        create_task_agent_from_taskname(opt)
