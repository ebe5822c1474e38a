"""ParlAI's readers of a user's files: the same lines as this package reads, and errors that name the line."""

from __future__ import annotations

import json

from spt_parlai.dialogue.messages import well_formed
from spt_parlai.errors import UsageError, explained, shorten
from spt_parlai.tasks.convai2_files import check_dialogues
from spt_parlai.text_files import read_lines


def ignore_byte_order_marks() -> None:
    """Read a text file that begins with a byte order mark like the same file without one.

    Breaks: the mark belongs to the first line, so that neither ``1``, ``text:`` nor ``{`` is found where it begins, and
    a blocked phrase never occurs.
    Where: ``PathManager.open``, ``parlai/core/teachers.py:1374`` and wherever else ParlAI reads a text file.
    Safe: files without a mark read the same, and what is written stays as it is. Where ParlAI names no encoding, the
    file is UTF-8 too, not whatever the locale says.
    Goes: when ParlAI reads text files as ``utf-8-sig``.
    """
    from parlai.utils.io import PathManager

    parlai_open = PathManager.open

    def open_text(path, mode='r', *args, **kwargs):
        if mode in ('r', 'rt') and kwargs.get('encoding') in (None, 'utf-8', 'utf8'):
            kwargs['encoding'] = 'utf-8-sig'
        return parlai_open(path, mode, *args, **kwargs)

    PathManager.open = open_text


def name_unreadable_line() -> None:
    """Name the file and the line that a teacher of numbered dialogues, such as ConvAI2's, cannot read.

    Breaks: a line without its number ends in ``invalid literal for int()``, which names neither.
    Where: ``FbDeprecatedDialogTeacher.setup_data``, ``parlai/core/teachers.py:1344``.
    Safe: a file is only looked at again after ParlAI has failed to read it.
    Goes: when ParlAI names the line.
    """
    from parlai.core.teachers import FbDeprecatedDialogTeacher

    parlai_setup_data = FbDeprecatedDialogTeacher.setup_data

    def setup_data(self, path):
        try:
            yield from parlai_setup_data(self, path)
        except ValueError:
            check_dialogues(path)
            raise

    FbDeprecatedDialogTeacher.setup_data = setup_data


def read_conversations_by_line() -> None:
    """Read one well-formed conversation per line of a ``-t jsonfile``, and name the line that holds none.

    Breaks: a text with U+2028 or another separator that JSON allows in a string is cut in two, and a line that is no
    conversation ends in a ``JSONDecodeError`` or ``KeyError``, which names neither the file nor the line. A text
    that was cut inside an emoji cannot be printed.
    Where: ``Conversations._load_raw``, ``parlai/utils/conversations.py:205``.
    Safe: JSON writes a line break inside a string as ``\\n``, so a line that ParlAI could read stays the same.
    Goes: when ParlAI splits at line breaks alone and names the line.
    """
    from parlai.utils.conversations import Conversation, Conversations

    def load_raw(self, datapath):
        try:
            yield from read_lines(datapath)
        except ValueError as error:
            raise explained(
                RuntimeError, f'{datapath} cannot be read ({error}); give a file with one JSON object a line.'
            ) from error

    def load_conversations(self, datapath):
        for number, line in enumerate(self._load_raw(datapath), 1):
            if not line.strip():
                continue
            try:
                conversation = self._parse(line)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise UsageError(
                    f'{datapath}, line {number}: {shorten(line)} is no conversation; write '
                    '{"dialog": [[{"id": …, "text": …}, …]]} on one line.'
                ) from error
            yield conversation

    def parse(self, line):
        return Conversation(well_formed(json.loads(line)))

    Conversations._load_raw = load_raw
    Conversations._parse = parse
    Conversations._load_conversations = load_conversations
