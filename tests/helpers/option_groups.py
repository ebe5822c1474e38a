"""Every option group of every agent."""

from spt_parlai import agents

GROUPS = tuple(dict.fromkeys(group for name in agents.__all__ for group in getattr(agents, name).options))
