"""Dialogues of a train fold, and whether a dialogue contains given utterances in order."""

import pytest
from parlai.scripts.train_model import TrainModel

from spt_parlai.dialogue.messages import Dialogue, Turn
from spt_parlai.dialogue.training_set import has_in_order, instruction_of, settle_training_task, training_dialogues
from spt_parlai.errors import UsageError

SAMPLE = 'spt_parlai.tasks.sample'


def options(task=SAMPLE, **more):
    return TrainModel.setup_args().parse_kwargs(task=task, model='spt_parlai.agents:InContextAgent', llm='demo', **more)


@pytest.mark.parametrize('datatype', ['train', 'train:ordered', 'train:stream', 'valid', 'train:evalmode'])
def test_every_dialogue_of_the_train_fold_whatever_the_run_reads(datatype):
    opt = options(datatype=datatype, batchsize=7)
    opt['mutators'] = 'whole_dialogue'
    settle_training_task(opt)
    dialogues = training_dialogues(opt)
    assert len(dialogues) == 74
    first = dialogues[0]
    assert first.persona[0] == 'i give tours of an old lighthouse.' and len(first.persona) == 4
    assert first.turns[0] == Turn('good morning ! the fog just lifted here , so i can finally see the boats .', True)
    assert first.turns[1].text.startswith('that sounds pretty .') and not first.turns[1].own
    assert [turn.own for turn in first.turns] == [True, False] * 6 + [True]


def test_examples_are_drawn_by_the_seed():
    drawn = [instruction_of(options(shots=3, seed=seed)).examples for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 3 and not instruction_of(options()).examples
    assert instruction_of({**options(shots=74), 'seed': None}).examples


@pytest.mark.parametrize('task', ['interactive', 'self_chat'])
def test_a_chat_has_no_training_set_of_its_own(task):
    with pytest.raises(UsageError, match='--training-task is not given'):
        instruction_of({**options(shots=1), 'task': task})
    assert instruction_of({**options(shots=1, training_task=SAMPLE), 'task': task}).examples


def test_in_order():
    dialogue = Dialogue(['p'], [Turn('a', False), Turn('b', True), Turn('a', False), Turn('c', True)])
    assert all(
        has_in_order(dialogue, texts)
        for texts in ([], ['a'], ['a', 'b'], ['b', 'c'], ['a', 'a', 'c'], ['a', 'b', 'a', 'c'])
    )
    assert not any(has_in_order(dialogue, texts) for texts in (['d'], ['b', 'b'], ['c', 'a'], ['a', 'a', 'a'], ['p']))
