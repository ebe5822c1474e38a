"""Selective Prompt Tuning as a ParlAI agent (arXiv 2406.18187)."""

from spt_parlai import parlai_hooks

__version__ = '0.1.0'

parlai_hooks.install()
