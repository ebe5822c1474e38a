"""Teachers of the sample task: ``-t spt_parlai.tasks.sample``.

The files are beside this module, so nothing is downloaded, no datapath is read and nothing is ever written.
"""

from __future__ import annotations

import copy
import os

from parlai.core.teachers import FbDeprecatedDialogTeacher
from parlai.utils.data import DatatypeHelper

_FOLDER = os.path.dirname(os.path.abspath(__file__))


def _path(datatype: str) -> str:
    """
    Return the file of a datatype. There is no test set, so 'test' reads the valid file, as in ConvAI2.

    :param datatype: ParlAI's ``--datatype``, e.g. 'train:ordered'
    """
    fold = DatatypeHelper.fold(datatype)
    return os.path.join(_FOLDER, 'train.txt' if fold == 'train' else 'valid.txt')


class SelfTeacher(FbDeprecatedDialogTeacher):
    """Dialogues that begin with the persona of the speaker to model, as in ``convai2:SelfOriginal:no_cands``."""

    def __init__(self, opt, shared=None):
        opt = copy.deepcopy(opt)
        opt['datafile'] = _path(opt['datatype'])
        super().__init__(opt, shared)

    def num_episodes(self) -> int:
        return self._count()[0] if self.stream else super().num_episodes()

    def num_examples(self) -> int:
        return self._count()[1] if self.stream else super().num_examples()

    def _count(self) -> tuple[int, int]:
        """
        Count (episodes, examples) of the file.

        A ParlAI stream would write its counts beside the data file, and an installed package may be read-only.
        """
        if not hasattr(self, '_counts'):
            starts = [new_episode for _, new_episode in self.setup_data(self.opt['datafile'])]
            self._counts = sum(starts), len(starts)
        return self._counts


class DefaultTeacher(SelfTeacher):
    """The teacher of a bare ``-t spt_parlai.tasks.sample``."""
