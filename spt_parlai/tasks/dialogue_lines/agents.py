"""Teachers of corpora without persona, of which ParlAI's datapath holds one dialogue a line.

``-t spt_parlai.tasks.dialogue_lines:TopicalChatTeacher`` reads ``DATAPATH/dialogue_lines/topical_chat/train.txt`` or
``valid.txt``. Utterances are joined by `` __eou__ ``. The agent replies to every second one; an utterance without a
reply at the end is left out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

from parlai.core.teachers import DialogTeacher
from parlai.utils.data import DatatypeHelper

from spt_parlai.errors import UsageError
from spt_parlai.text_files import read_lines

END = '__eou__'
FOLDER = 'dialogue_lines'


class _LinesTeacher(DialogTeacher):
    """A corpus. There is no test set, so 'test' reads the valid file, as in ConvAI2."""

    corpus: str  # the name of its folder

    def __init__(self, opt, shared=None):
        opt = copy.deepcopy(opt)
        fold = 'train' if DatatypeHelper.fold(opt['datatype']) == 'train' else 'valid'
        opt['datafile'] = str(Path(opt['datapath']) / FOLDER / self.corpus / f'{fold}.txt')
        super().__init__(opt, shared)
        self.id = f'{FOLDER}:{self.corpus}'

    def setup_data(self, datafile: str) -> Iterator[tuple[tuple[str, str], bool]]:
        """
        Yield ((text, reply), whether a dialogue begins).

        :raises UsageError: if the file cannot be read or has a line without a reply.
        """
        try:
            lines = read_lines(datafile)
        except ValueError as error:
            raise UsageError(
                f'{datafile}: {error}; give with -dp the folder that holds {FOLDER}/{self.corpus}/train.txt and '
                'valid.txt, one dialogue a line.'
            ) from error
        for number, line in enumerate(lines, 1):
            turns = [turn.strip() for turn in line.split(END)]
            if len(turns) < 2 or not all(turns):
                raise UsageError(f'{datafile}, line {number}: give at least two utterances, joined by " {END} ".')
            for i in range(0, len(turns) - 1, 2):
                yield (turns[i], turns[i + 1]), i == 0


class TopicalChatTeacher(_LinesTeacher):
    """Topical-Chat (Gopalakrishnan et al., 2019): open-domain talk about articles."""

    corpus = 'topical_chat'


class Taskmaster4Teacher(_LinesTeacher):
    """Taskmaster-4 (Byrne et al., 2022): orders at a café's counter."""

    corpus = 'taskmaster4'


class WizardOfWikipediaTeacher(_LinesTeacher):
    """Wizard of Wikipedia (Dinan et al., 2019): an apprentice asks, and a wizard explains."""

    corpus = 'wizard_of_wikipedia'
