"""Several replies to each context: one prefill for a context and a prompt, and one batch for all replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from spt_parlai.model.decoding import Choice, DecodingState, Replies, Search, greedy
from spt_parlai.model.freed_memory import return_freed_memory
from spt_parlai.model.prompted_lm import PromptedLM

CACHE_BYTES = 2 * 2**30  # of the keys and values of the replies that are drawn together on a CPU; a GPU draws all


class OwnDraws:
    """A `decoding.Choice` that gives every row random numbers of its own, whatever other rows are beside it.

    :param choose: draws tokens (`top_k` or `nucleus` with its parameter), or `greedy`.
    :param seeds: the seed of each row; None: the row takes the likeliest tokens.
    """

    def __init__(self, choose: Choice, seeds: Sequence[int | None], device: torch.device):
        self.choose = choose
        self.draws = [None if seed is None else torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, log_probs: Tensor, ended: list[bool], rows: list[int]) -> tuple[Tensor, Tensor]:
        draws = [self.draws[row] for row in rows]
        likeliest = [draw is None for draw in draws]
        over = [done or certain for done, certain in zip(ended, likeliest, strict=True)]
        tokens, scores = self.choose(log_probs, over, rows, draws)  # type: ignore[call-arg]
        if any(likeliest):
            here = torch.tensor(likeliest, device=log_probs.device)
            top, top_scores = greedy(log_probs[here], [])
            tokens[here], scores[here] = top, top_scores
        return tokens, scores


def draw_replies(
    model: PromptedLM,
    encoded: DecodingState,
    search: Search,
    rows: Sequence[int],
    seeds: Sequence[int | None],
    contexts: Tensor | None = None,
) -> Replies:
    """Draw R replies with the settings of a search. `encoded` stays as it is.

    All are drawn in one batch, but on a CPU only as many at once as keep `CACHE_BYTES`.

    :param encoded: states of contexts after prompts, from `model.encoder`.
    :param rows: for each reply, the row of `encoded` that it continues.
    :param seeds: for each reply, see `OwnDraws`.
    :param contexts: int64 [rows of `encoded`, T], for `context_block_ngram`.
    """
    device, parts = encoded.logits.device, []
    at_once = _rows_at_once(encoded, search.max_length) if device.type == 'cpu' else len(rows)
    for start in range(0, len(rows), at_once):
        chosen = torch.tensor(rows[start : start + at_once], device=device)
        drawing = replace(search, choose=OwnDraws(search.choose, seeds[start : start + at_once], device))
        of_rows = None if contexts is None else contexts.to(device)[chosen]
        parts.append(drawing(model, encoded.reordered(chosen), of_rows))
    return_freed_memory()  # what the next batch needs is longer, so that no freed piece would be large enough
    return Replies(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _rows_at_once(encoded: DecodingState, max_length: int) -> int:
    """How many rows of a cache that grows by `max_length` tokens keep `CACHE_BYTES`; at least one."""
    R, T = len(encoded.logits), encoded.mask.shape[1]
    layers = getattr(encoded.cache, 'layers', ())
    tensors = [getattr(layer, name, None) for layer in layers for name in ('keys', 'values')]
    held = sum(tensor.nbytes for tensor in tensors if torch.is_tensor(tensor))
    return max(1, CACHE_BYTES * R * T // max(1, held * (T + max_length)))


def target_log_probs(model: PromptedLM, encoded: DecodingState, row: int, targets: Tensor) -> Tensor:
    """Each token's log-probability after one row of `encoded`: targets int64 [C, U] → float32 [C, U], 0 for padding.

    :param targets: right-padded with negative ids.
    """
    logits, _ = model.decode_forced(model.reorder_encoder_states(encoded, [row] * len(targets)), targets)
    targets = targets.to(logits.device)
    log_probs = torch.log_softmax(logits.float(), -1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return log_probs * (targets >= 0)
