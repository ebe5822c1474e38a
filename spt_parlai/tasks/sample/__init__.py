"""The sample task, small persona dialogues in the format of ConvAI2: ``-t spt_parlai.tasks.sample``."""

import parlai  # noqa: F401  this installs the hooks, before a file of this room imports more of ParlAI

from spt_parlai.tasks.sample.agents import DefaultTeacher, SelfTeacher

__all__ = ['DefaultTeacher', 'SelfTeacher']
