"""The sample task: its text is well formed, and ParlAI's teacher reads all of it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip('parlai')

from parlai.core.loader import load_teacher_module  # noqa: E402
from parlai.core.opt import Opt  # noqa: E402

import spt_parlai.tasks.sample.agents as agents  # noqa: E402

TASK = 'spt_parlai.tasks.sample'
FOLDER = Path(agents.__file__).parent
COUNTS = {'train': (74, 496), 'valid': (16, 108)}  # fold -> (episodes, examples)
SILENCE = '__SILENCE__'

WORD = r"(?:[a-z]+(?:'[a-z]+)*|[0-9]+)"
UTTERANCE = re.compile(rf'(?:{WORD}|[.,!?])(?: (?:{WORD}|[.,!?]))*')
PERSONA = re.compile(rf'your persona: {WORD}(?: {WORD})*\.')


def read(fold):
    """Return the fold's dialogues, each (persona lines, [(partner, own reply), ...]); checks the line numbers."""
    dialogues = []
    last = 0
    for line in (FOLDER / f'{fold}.txt').read_text(encoding='ascii').splitlines():
        number, _, text = line.partition(' ')
        if number == '1':
            dialogues.append(([], []))
        else:
            assert int(number) == last + 1, line
        last = int(number)
        persona, turns = dialogues[-1]
        if '\t' in text:
            partner, own = text.split('\t')
            turns.append((partner, own))
        else:
            assert not turns, f'a persona line inside the dialogue: {line}'
            persona.append(text)
    return dialogues


@pytest.fixture(scope='module')
def sample():
    return {fold: read(fold) for fold in COUNTS}


def teacher(datatype, name=TASK):
    opt = Opt(task=name, datatype=datatype, datapath='/nonexistent', batchsize=1, numthreads=1)
    return load_teacher_module(name)(opt)


def one_epoch(reader, n):
    return [reader.act() for _ in range(n)]


@pytest.mark.parametrize('fold', COUNTS)
def test_counts(sample, fold):
    dialogues = sample[fold]
    assert (len(dialogues), sum(len(turns) for _, turns in dialogues)) == COUNTS[fold]


@pytest.mark.parametrize('fold', COUNTS)
def test_dialogue_sizes(sample, fold):
    for persona, turns in sample[fold]:
        assert 4 <= len(persona) <= 5, persona
        assert 6 <= len(turns) <= 8, persona


@pytest.mark.parametrize('fold', COUNTS)
def test_text_is_lower_case_ascii_with_separate_punctuation(sample, fold):
    for persona, turns in sample[fold]:
        for line in persona:
            assert PERSONA.fullmatch(line), line
        for i, (partner, own) in enumerate(turns):
            assert UTTERANCE.fullmatch(partner) or (i == 0 and partner == SILENCE), partner
            assert UTTERANCE.fullmatch(own), own
            assert 3 <= len(re.findall(WORD, own)) <= 18, own


@pytest.mark.parametrize('fold', COUNTS)
def test_owner_opens_half_of_the_dialogues(sample, fold):
    opened = sum(turns[0][0] == SILENCE for _, turns in sample[fold])
    assert opened * 2 == len(sample[fold])


def test_no_persona_twice(sample):
    personas = [frozenset(persona) for dialogues in sample.values() for persona, _ in dialogues]
    assert len(set(personas)) == len(personas)
    lines = Counter(line for persona in personas for line in persona)
    assert lines.most_common(1)[0][1] == 1, lines.most_common(3)


def test_no_stock_replies(sample):
    replies = Counter(own for dialogues in sample.values() for _, turns in dialogues for _, own in turns)
    assert replies.most_common(1)[0][1] <= 3, replies.most_common(3)


@pytest.mark.parametrize('datatype', ['train:evalmode', 'train:ordered', 'train:stream:ordered', 'valid', 'test'])
def test_teacher_yields_the_file_in_order(sample, datatype):
    fold = 'train' if datatype.startswith('train') else 'valid'
    reader = teacher(datatype)
    assert (reader.num_episodes(), reader.num_examples()) == COUNTS[fold]
    messages = iter(one_epoch(reader, COUNTS[fold][1]))
    labels = 'eval_labels' if datatype in ('train:evalmode', 'valid', 'test') else 'labels'
    for persona, turns in sample[fold]:
        for i, (partner, own) in enumerate(turns):
            message = next(messages)
            assert message['text'] == '\n'.join(persona + [partner] if i == 0 else [partner])
            assert list(message[labels]) == [own]
            assert message['episode_done'] == (i == len(turns) - 1)
            assert 'label_candidates' not in message
    assert next(messages, None) is None


@pytest.mark.parametrize('datatype', ['train', 'train:stream'])
def test_training_teacher_goes_on_past_the_epoch(sample, datatype):
    reader = teacher(datatype)
    assert (reader.num_episodes(), reader.num_examples()) == COUNTS['train']
    starts = True
    for message in one_epoch(reader, COUNTS['train'][1] + 20):
        assert message['text'].startswith('your persona: ') == starts
        assert len(message['labels']) == 1
        starts = message['episode_done']


def test_shared_teacher_counts_alike():
    main = teacher('train:stream')
    copy = type(main)(main.opt, main.share())
    assert (copy.num_episodes(), copy.num_examples()) == COUNTS['train']
    assert copy.act()['text'].startswith('your persona: ')


def test_self_teacher_is_the_default_one():
    by_name = [message['text'] for message in one_epoch(teacher('valid', TASK + ':SelfTeacher'), COUNTS['valid'][1])]
    assert by_name == [message['text'] for message in one_epoch(teacher('valid'), COUNTS['valid'][1])]


def test_nothing_is_written_beside_the_data():
    for datatype in ('train', 'train:stream', 'valid'):
        teacher(datatype).num_examples()
    assert {p.name for p in FOLDER.iterdir()} - {'__pycache__'} == {
        '__init__.py',
        'agents.py',
        'README.md',
        'train.txt',
        'valid.txt',
    }


def test_readme_states_the_counts():
    text = (FOLDER / 'README.md').read_text(encoding='utf-8')
    for fold, (episodes, examples) in COUNTS.items():
        assert f'| {fold} | {episodes} | {examples} |' in text
    assert f'parlai display_data -t {TASK}' in text
