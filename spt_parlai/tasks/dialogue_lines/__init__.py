"""Corpora of one dialogue a line: ``-t spt_parlai.tasks.dialogue_lines:TopicalChatTeacher``."""

import parlai  # noqa: F401  this installs the hooks, before a file of this room imports more of ParlAI

from spt_parlai.tasks.dialogue_lines.agents import Taskmaster4Teacher, TopicalChatTeacher, WizardOfWikipediaTeacher

__all__ = ['Taskmaster4Teacher', 'TopicalChatTeacher', 'WizardOfWikipediaTeacher']
