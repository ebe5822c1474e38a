"""C.score with a tiny random NLI model, against its own logits one pair at a time."""

import pytest
import torch
from helpers.classifier import write_classifier
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from spt_parlai.metrics.nli import CONTRADICTS, ENTAILS, NEUTRAL, Nli, c_scores

LABELS = ('Contradiction', 'ENTAILMENT', 'neutral')
REPLIES = ['i like tea .', 'i have a dog .', '', 'no !', 'yes , i love my two cats and the rain .']
PERSONAS = [
    ('i like tea .', 'i hate dogs .'),
    (),
    ('i am a nurse .',),
    ('i ski .', 'i bake .', 'i swim .'),
    ('cats .',),
]


@pytest.fixture(scope='module')
def make(tiny_llms, tmp_path_factory):
    """labels → the folder of a random classifier."""
    return lambda *labels: write_classifier(tmp_path_factory.mktemp('nli'), tiny_llms.opt, *labels)


def test_verdicts_are_those_of_the_model_pair_by_pair(make):
    folder = make(*LABELS)
    tokenizer, model = (kind.from_pretrained(folder) for kind in (AutoTokenizer, AutoModelForSequenceClassification))
    pairs = [(reply, sentence) for reply in REPLIES for persona in PERSONAS for sentence in persona]
    with torch.no_grad():
        chosen = [int(model.eval()(**tokenizer(*pair, return_tensors='pt')).logits.argmax()) for pair in pairs]
    wanted = [(CONTRADICTS, ENTAILS, NEUTRAL)[i] for i in chosen]
    nli = Nli(folder)
    assert nli.verdicts(pairs) == wanted and len(set(wanted)) == 3
    assert nli.verdicts(pairs[::-1]) == wanted[::-1]
    verdict = dict(zip(pairs, wanted, strict=True))
    scores = [
        sum(verdict[reply, sentence] for sentence in persona) if reply else 0
        for reply, persona in zip(REPLIES, PERSONAS, strict=True)
    ]
    scores[1] = None  # no persona
    assert c_scores(nli, REPLIES, PERSONAS) == scores


def test_a_model_for_another_task_is_refused(make):
    with pytest.raises(ValueError, match='its labels are positive, negative; give a model that has labels for entail'):
        Nli(make('positive', 'negative'))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match='the model could not be loaded .*; give the folder of an NLI model'):
        Nli(tmp_path)
