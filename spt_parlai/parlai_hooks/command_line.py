"""What a user is told when a command line cannot be read."""

from __future__ import annotations

import difflib
import sys


def explain_wrong_options() -> None:
    """Print the error of a command line alone, with the option that was probably meant.

    Breaks: the help, hundreds of lines, comes before the error.
    Where: ``ParlaiParser.error``, ``parlai/core/params.py:1395``.
    Safe: the message and the exit status are ParlAI's; ``--help`` prints the help.
    Goes: when ParlAI prints the error alone.
    """
    from parlai.core.params import ParlaiParser

    def error(self, message):
        known = getattr(self, '_help_subparser', None) or self  # the command's parser, if there are several commands
        sys.stderr.write(f'Parse Error: {message}{_suggestion(message, known._option_string_actions)}\n')
        sys.exit(2)

    ParlaiParser.error = error


def _suggestion(message: str, names) -> str:
    """`; did you mean --X?` if the message is of unknown options, and known ones are much like them."""
    _, _, unknown = message.partition('unrecognized arguments: ')
    options = [word.partition('=')[0] for word in unknown.split() if word.startswith('--')]
    meant = [match for option in options for match in difflib.get_close_matches(option, names, n=1, cutoff=0.8)]
    return f'; did you mean {", ".join(meant)}?' if meant else ''
