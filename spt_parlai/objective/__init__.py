"""The four losses as pure functions of log-probabilities and scores. They depend neither on a model nor on ParlAI."""

from spt_parlai.objective.losses import Losses, SptObjective

__all__ = ['Losses', 'SptObjective']
