"""The four losses as pure functions of log-probabilities and scores. Knows no model and no ParlAI."""

from spt_parlai.objective.losses import Losses, SptObjective

__all__ = ['Losses', 'SptObjective']
