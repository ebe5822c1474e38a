"""The corpora of `mixed`: the committed split, and the teacher that reads what it writes."""

import json

import pytest
from parlai.core.opt import Opt

from spt_parlai.errors import UsageError
from spt_parlai.tasks.dialogue_lines import Taskmaster4Teacher


@pytest.fixture
def split(monkeypatch, tmp_path, project):
    import split

    for name in split.NAMES:
        (tmp_path / f'{name}.txt').write_text(
            ''.join(f'{name} {i} __eou__ yes {i} __eou__ bye\n' for i in range(9)) + 'alone\n', encoding='utf-8'
        )
    monkeypatch.setattr(split, 'SPLIT', tmp_path / 'split.json')
    split.draw_split(tmp_path, each=2)
    return split


def test_every_dialogue_is_in_one_fold_and_the_split_stays(split, tmp_path):
    assert split.install(tmp_path, tmp_path / 'data') == dict.fromkeys(split.NAMES, (7, 2))
    folder = tmp_path / 'data' / 'dialogue_lines' / 'taskmaster4'
    train, valid = ((folder / f'{fold}.txt').read_text().splitlines() for fold in ('train', 'valid'))
    assert not set(train) & set(valid) and len(set(train + valid)) == 9
    assert [split.identity(line) for line in valid] == json.loads(split.SPLIT.read_text())['taskmaster4']


def test_a_file_without_the_dialogues_of_the_split_is_refused(split, tmp_path):
    (tmp_path / 'topical_chat.txt').write_text('hello __eou__ hi\n', encoding='utf-8')
    with pytest.raises(UsageError, match='topical_chat.txt lacks 2 of the 2 dialogues'):
        split.install(tmp_path, tmp_path / 'data')


def test_the_teacher_replies_to_every_second_utterance(tmp_path):
    folder = tmp_path / 'dialogue_lines' / 'taskmaster4'
    folder.mkdir(parents=True)
    (folder / 'valid.txt').write_text('a __eou__ b __eou__ c __eou__ d __eou__ e\nf __eou__ g\n', encoding='utf-8')
    opt = Opt(datatype='valid', datapath=str(tmp_path), task='x')
    teacher = Taskmaster4Teacher(opt)
    acts = [teacher.act() for _ in range(3)]
    assert [(act['text'], act['eval_labels'], act['episode_done']) for act in acts] == [
        ('a', ('b',), False),
        ('c', ('d',), True),
        ('f', ('g',), True),
    ]
    (folder / 'valid.txt').write_text('a\n', encoding='utf-8')
    with pytest.raises(UsageError, match='line 1: give at least two utterances'):
        Taskmaster4Teacher(opt)
    with pytest.raises(UsageError, match='give with -dp the folder'):
        Taskmaster4Teacher(Opt(datatype='train', datapath=str(tmp_path), task='x'))
