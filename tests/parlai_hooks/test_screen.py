"""What a person sees of a run: its start in a few lines, a line a report, a bar on a terminal, one table at its end."""

import io
import re
import sys
from logging import Handler
from pathlib import Path

import pytest
from helpers.runs import SAMPLE, evaluate, train
from parlai.scripts.interactive import Interactive
from parlai.scripts.self_chat import SelfChat
from parlai.scripts.train_model import TrainModel
from parlai.utils import logging

from spt_parlai.parlai_hooks import screen

SHORT = {'max_train_steps': 2, 'log_every_n_steps': 1, 'log_every_n_secs': -1, 'validation_every_n_steps': 2}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def said():
    """What ParlAI's logger says, a message an entry."""
    messages, level = [], logging.logger.level
    handler = Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.logger.addHandler(handler)
    logging.set_log_level('INFO')
    yield messages
    logging.set_log_level(level)
    logging.logger.removeHandler(handler)


def test_a_run_is_its_start_a_line_a_report_and_one_table(tiny_llms, tmp_path, said):
    train(tmp_path / 'm', tiny_llms.opt, **SHORT)
    for beginning in ('--llm ', 'SptAgent, 3 soft prompts of 2 tokens, ', f'{SAMPLE}: 496 turns, 4 dialogues a step, '):
        assert len([line for line in said if line.startswith(beginning)]) == 1
    assert f'saved in {tmp_path / "m"}' in said
    reports = [line for line in said if re.match(r'step 1, epoch .* left:  spt_loss .*  ppl .*  prompts .* %', line)]
    tables = [line for line in said if '\nquality\n' in line]
    assert len(reports) == 1 and len(tables) == 1 and tables[0].startswith('final report, -dt valid:')
    assert said[-1] == f'-dt test of {SAMPLE} is its validation fold, whose report stands above.'
    assert len(said) < 12 and not any(line.startswith(('Opt:', 'Total parameters', 'running eval')) for line in said)


def test_the_test_fold_that_is_the_validation_fold_has_its_report(tiny_llms, tmp_path):
    valid, test = train(tmp_path / 'm', tiny_llms.opt, max_train_steps=1)
    assert valid == test and valid['exs'] == 8
    files = [Path(f'{tmp_path / "m"}.{fold}').read_text().partition('\n')[2] for fold in ('valid', 'test')]
    assert files[0] == files[1] != ''


def test_another_test_fold_is_evaluated(tiny_llms, tmp_path, said):
    train(tmp_path / 'm', tiny_llms.opt, max_train_steps=1, task='integration_tests:nocandidate')
    assert [line.partition('\n')[0] for line in said if '\nquality\n' in line] == [
        'final report, -dt valid:',
        'final report, -dt test:',
    ]


@pytest.mark.parametrize('level', ['info', 'debug'])
def test_everything_is_shown_when_asked_for(level, tiny_llms, tmp_path, said):
    train(tmp_path / 'm', tiny_llms.opt, **SHORT, verbose=level == 'info', loglevel=level)
    assert {'Opt:', 'running eval: valid', 'training...'} <= set(said)
    assert not any(line.startswith('final report') for line in said)


def test_runs_of_other_agents_are_shown_as_parlai_shows_them(tmp_path, said):
    TrainModel.main(task='integration_tests', model='test_agents/unigram', model_file=str(tmp_path / 'm'), num_epochs=1)
    assert {'Opt:', 'running eval: valid', 'training...'} <= set(said)
    assert not any(line.startswith('final report') for line in said)


def test_an_evaluation_prints_its_report_once(tiny_llms, tmp_path, said, capsys):
    train(tmp_path / 'm', tiny_llms.opt, max_train_steps=1)
    capsys.readouterr()
    said.clear()
    report = evaluate(tmp_path / 'm', num_examples=8)
    out = capsys.readouterr().out
    assert len([line for line in said if line.startswith(f'{SAMPLE}, -dt valid: SptAgent, 3 soft prompts of 2 ')]) == 1
    assert len(said) < 4 and out.startswith('quality\n') and out.count('quality') == 1
    assert re.search(rf'^  ppl  +{report["ppl"]:.4g}  ', out, re.MULTILINE)


def test_a_chat_begins_with_its_llm_alone(tiny_llms, tmp_path, said, monkeypatch):
    train(tmp_path / 'm', tiny_llms.opt, max_train_steps=1)
    said.clear()
    monkeypatch.setattr('builtins.input', lambda prompt: '[EXIT]')
    Interactive.main('-mf', str(tmp_path / 'm'))
    assert [line.partition(' ')[0] for line in said] == ['--llm']
    said.clear()
    SelfChat.main('-mf', str(tmp_path / 'm'), '--selfchat-max-turns', '2', '--outfile', str(tmp_path / 'chat'))
    assert said[0].startswith('--llm ') and '100.0% complete' in said[1]


def test_a_bar_on_a_terminal(tiny_llms, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'stderr', terminal := Terminal())
    monkeypatch.setattr(screen, '_SECONDS', 0.0)
    train(tmp_path / 'm', tiny_llms.opt, **SHORT)
    shown = terminal.getvalue()
    assert re.search(r'step 1 +50%\|#{10} +\| .*turns/s +ppl [\d.]+  prompts \d+ \d+ \d+ %', shown)
    assert re.search(r'valid +\d+%\|', shown)
    before = len(shown)
    evaluate(tmp_path / 'm', num_examples=8)
    assert re.search(rf'{SAMPLE} 100%\|#{{20}}\|', terminal.getvalue()[before:])


def test_no_bar_elsewhere(tiny_llms, tmp_path, capsys):
    train(tmp_path / 'm', tiny_llms.opt, max_train_steps=1)
    assert '%|' not in capsys.readouterr().err
