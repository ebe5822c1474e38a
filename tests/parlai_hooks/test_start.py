"""Commands start with what their user wants to see."""

import parlai
import pytest
from parlai.core import params
from parlai.core.opt import Opt
from parlai.utils import logging

from spt_parlai.parlai_hooks.start import name_no_commit_of_others


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, 'info', lines.append)
    return lines


def test_a_run_lists_its_options_and_names_no_commit(said):
    Opt({'task': 'sample'}).log()
    assert said == ['Opt:', '    task: sample']


@pytest.mark.parametrize('level, lines', [(logging.INFO, 0), (logging.DEBUG, 2)])
def test_a_chat_lists_them_for_debugging(said, level, lines):
    before = logging.logger.level
    logging.logger.setLevel(level)
    try:
        Opt({'interactive_mode': True}).log()
    finally:
        logging.logger.setLevel(before)
    assert len(said) == lines


def test_a_checkout_of_parlai_names_its_commit(monkeypatch, tmp_path):
    (tmp_path / '.git').mkdir()
    monkeypatch.setattr(parlai, '__file__', str(tmp_path / 'parlai' / '__init__.py'))
    monkeypatch.setattr(params, 'print_git_commit', parlai_print := object())
    name_no_commit_of_others()
    assert params.print_git_commit is parlai_print


def test_a_log_level_takes_effect_after_a_message(monkeypatch):
    before, messages = logging.logger.level, []
    monkeypatch.setattr(logging.logger.streamHandler, 'emit', lambda record: messages.append(record.getMessage()))
    try:
        for level in ('INFO', 'ERROR', 'INFO'):
            logging.set_log_level(level)
            logging.info(level)
    finally:
        logging.set_log_level(before)
    assert messages == ['INFO', 'INFO']
