"""The sample task, small persona dialogues in the format of ConvAI2: ``-t spt_parlai.tasks.sample``."""

from spt_parlai.tasks.sample.agents import DefaultTeacher, SelfTeacher

__all__ = ['DefaultTeacher', 'SelfTeacher']
