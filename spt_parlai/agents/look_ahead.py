"""Predict all turns of an evaluated dialogue when its first turn comes, in rows that share their beginning.

Only log-probabilities and replies are kept. Each turn finds its own by its context, target and selected prompt, token
for token; a batch with a turn that finds none is predicted as if nobody had looked ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from parlai.core.torch_agent import Batch
from torch import Tensor

from spt_parlai.agents.batching import TurnExample, pack_batch
from spt_parlai.agents.generation import FoundReply
from spt_parlai.dialogue.episode import Episode
from spt_parlai.model.context_states import ContextStates
from spt_parlai.model.prompted_lm import Prediction, Selection


class _Predicted(NamedTuple):
    """Of one turn: log_probs float32 [K, n], targets and greedy int64 [n], as in `Prediction`, and its reply."""

    log_probs: Tensor
    targets: Tensor
    greedy: Tensor
    reply: FoundReply | None


def predict_ahead(
    batch: Batch,
    selection: Selection,
    turns_of: Callable[[Episode], Sequence[TurnExample]],
    predict: Callable[[Batch], Prediction],
    padding: int,
    reply: Callable[[ContextStates], Sequence[FoundReply]] | None = None,
) -> Prediction | None:
    """Return the prediction of a batch, each of whose examples is a turn of an episode, or None if one is not foreseen.

    :param batch: with `episodes`, one for each example.
    :param turns_of: the examples of an episode, in order.
    :param reply: finds a reply to every example, for `replies_ahead`; None: nobody asks for replies.
    """
    fresh = [episode for episode in dict.fromkeys(batch.episodes) if not episode.read]
    for episode in fresh:
        episode.read = True
    dialogues = [(episode, turns) for episode in fresh if (turns := turns_of(episode))]
    if dialogues:
        ahead = Batch(is_training=False, keep_states=reply is not None)
        pack_batch(ahead, [turns for _, turns in dialogues], padding)
        prediction = predict(ahead)
        told = [(episode, turn) for episode, turns in dialogues for turn in turns]
        sizes = [len(turn.target) for _, turn in told]
        states = prediction.states
        split = zip(
            prediction.log_probs.split(sizes, dim=1),
            prediction.targets.split(sizes),
            prediction.greedy.split(sizes),
            [None] * len(told) if reply is None or states is None else reply(states),
            strict=True,
        )
        for (episode, turn), selected, piece in zip(told, prediction.selected.tolist(), split, strict=True):
            episode.predictions[_key(turn.context, turn.target, selected)] = _Predicted(*piece)
    pieces = _find(batch, selection)
    found = [piece for piece in pieces if piece is not None]
    if len(found) < len(pieces):
        return None
    device = selection.scores.device
    lengths = torch.tensor([len(piece.targets) for piece in found], device=device)
    return Prediction(
        torch.cat([piece.log_probs for piece in found], dim=1),
        selection.scores,
        selection.selected,
        torch.arange(len(found), device=device).repeat_interleave(lengths),
        torch.cat([piece.targets for piece in found]),
        torch.cat([piece.greedy for piece in found]),
    )


def replies_ahead(batch: Batch, selection: Selection) -> list[FoundReply] | None:
    """Return the replies of a batch whose examples have been predicted ahead, or None if one of them has none."""
    if batch.label_vec is None:  # hidden labels: nothing was predicted
        return None
    pieces = _find(batch, selection)
    replies = [piece.reply for piece in pieces if piece is not None and piece.reply is not None]
    return replies if len(replies) == len(pieces) else None


def _find(batch: Batch, selection: Selection) -> list[_Predicted | None]:
    keys = map(_key, batch.text_vec.tolist(), batch.label_vec.tolist(), selection.selected.tolist())
    return [episode.predictions.get(key) for episode, key in zip(batch.episodes, keys, strict=True)]


def _key(context: Sequence[int], target: Sequence[int], selected: int) -> tuple:
    return tuple(i for i in context if i >= 0), tuple(i for i in target if i >= 0), selected
