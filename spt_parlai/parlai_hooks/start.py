"""What ParlAI's commands say as they start."""

from __future__ import annotations


def list_options_of_no_chat() -> None:
    """List the options of training and evaluation, and those of a chat only with ``--loglevel debug``.

    Breaks: nothing; a chat begins with some 190 lines of options, above which its persona is lost.
    Where: ``agent.opt.log()``, ``parlai/scripts/interactive.py:85``, ``self_chat.py:113``, ``interactive_web.py:275``.
    Safe: the model file's ``.opt`` holds the same options; logs of runs keep them.
    Goes: when ParlAI's chats begin with the chat.
    """
    from parlai.core.opt import Opt
    from parlai.utils import logging

    parlai_log = Opt.log

    def log(self, header='Opt'):
        if not self.get('interactive_mode') or logging.logger.level <= logging.DEBUG:
            parlai_log(self, header)

    Opt.log = log


def name_no_commit_of_others() -> None:
    """Log a commit as ParlAI's only if ParlAI is a checkout.

    Breaks: nothing; every run logs the commit of whatever repository the environment lies in as ParlAI's.
    Where: ``print_git_commit``, ``parlai/core/params.py:35``.
    Safe: it only logs, and a checkout of ParlAI still logs its own.
    Goes: when ParlAI looks at the root of the repository that it finds.
    """
    from pathlib import Path

    import parlai
    from parlai.core import params

    if not (Path(parlai.__file__).parents[1] / '.git').exists():
        params.print_git_commit = lambda: None


def let_log_levels_take_effect() -> None:
    """Forget, when a log level is set, what the logger has remembered of the level before.

    Breaks: after the first message of a level, ``--loglevel`` neither hides nor shows that level.
    Where: ``set_log_level``, ``parlai/utils/logging.py:137``; Python clears the memory of the loggers that it manages
    only, and ParlAI makes its own.
    Safe: the memory is a cache.
    Goes: when ParlAI's logger is one of ``getLogger``.
    """
    from parlai.utils.logging import ParlaiLogger

    python_set_level = ParlaiLogger.setLevel

    def set_level(self, level):
        python_set_level(self, level)
        self._cache.clear()

    ParlaiLogger.setLevel = set_level
