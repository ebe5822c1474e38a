"""Every option group of every agent, and the check of all options."""

from spt_parlai import agents
from spt_parlai.options.parlai_options import check_parlai_options
from spt_parlai.options.validate import check_options

GROUPS = tuple(dict.fromkeys(group for name in agents.__all__ for group in getattr(agents, name).options))


def check_all(opt) -> None:
    """What an agent checks before anything is loaded, with the options of every agent."""
    check_parlai_options(opt)
    check_options(opt, GROUPS)
