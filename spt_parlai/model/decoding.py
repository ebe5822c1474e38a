"""Decoding a whole batch at once: the state between two steps, and a search over tensors.

The search finds the tokens that ParlAI's own search finds, which keeps an object for every row and moves the rows one
after another. Here nothing is done row by row, and rows that have ended leave the batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

_NEVER = -1e20  # log-probability of a blocked token, as in ParlAI
_LEAVING_SHARE = 1 / 3  # rows leave once this share of them has ended: leaving costs a copy of the cache that stays

Choice = Callable[[Tensor, list[bool], list[int]], tuple[Tensor, Tensor]]
"""(log-probabilities float32 [R, V], which rows have ended, the number of each row) → (tokens int64 [R], their scores
float32 [R]); the numbers are those of the rows at the beginning, of which some may have left"""


@dataclass
class DecodingState:
    """R rows between two decoding steps.

    logits: [R, V], those after the prefill; cache: the LM's `Cache`; mask: bool [R, T] over what the cache holds;
    scores: float32 [R, K] (eq. 1) and selected: int64 [R] (eq. 7) of each row.
    """

    logits: Tensor
    cache: Any
    mask: Tensor
    scores: Tensor
    selected: Tensor

    def extended(self, more: Tensor) -> DecodingState:
        """The same rows, with a mask for S columns that will enter the cache next: more bool [R, S]."""
        return replace(self, mask=torch.cat([self.mask, more.to(self.mask.device)], dim=1))

    def reordered(self, rows: Tensor) -> DecodingState:
        """A new state of chosen rows, in any order and number; this one stays as it is."""
        return DecodingState(
            self.logits[rows],
            _reorder_cache(self.cache, rows),
            self.mask[rows.to(self.mask.device)],
            self.scores[rows.to(self.scores.device)],
            self.selected[rows.to(self.selected.device)],
        )


def _reorder_cache(cache: Any, rows: Tensor) -> Any:
    """A cache of chosen rows. Layers are copied without their tensors; `reorder_cache` then gives each copy its own."""
    cache = copy.copy(cache)
    cache.layers = [copy.copy(layer) for layer in cache.layers]
    cache.reorder_cache(rows)
    return cache


# ---- search ---------------------------------------------------------------------------------------------


class Replies(NamedTuple):
    """B replies.

    tokens: int64 [B, 1 + S], from the start token to one end token; lengths: int64 [B], the tokens up to and including
    that end token; scores: float32 [B], the sum of the chosen tokens' scores.
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Search:
    """The settings of a search; calling it finds the replies.

    :param choose: picks a token for every row.
    :param start, end: the ids that begin and end a reply.
    :param max_length: the longest reply; in one that has not ended by then, the end token replaces the last token.
    :param temperature: divides the logits.
    :param min_length: a reply does not end before it has this many tokens.
    :param block_ngram: no n-gram of this size occurs twice in a reply; 0 or less: no limit.
    :param context_block_ngram: no n-gram of this size is copied from the context; 0 or less: no limit.
    :param stops: whether a reply, as token ids without the start token, is over; the end token then follows it.
    """

    choose: Choice
    start: int
    end: int
    max_length: int
    temperature: float = 1.0
    min_length: int = 0
    block_ngram: int = 0
    context_block_ngram: int = 0
    stops: Callable[[list[int]], bool] | None = None

    def __call__(self, model, encoded: DecodingState, context: Tensor | None = None) -> Replies:
        """Reply to the contexts that `model.encoder` has encoded. The cache in `encoded` is consumed.

        :param context: int64 [B, T], the tokens for `context_block_ngram`.
        """
        B, device = len(encoded.logits), encoded.logits.device
        tokens = torch.full((B, 1 + self.max_length), self.end, device=device)
        tokens[:, 0] = self.start
        lengths = torch.full((B,), 1 + self.max_length, device=device)
        scores = torch.zeros(B, device=device)
        rows = torch.arange(B, device=device)  # [R], the rows that are still in the batch
        ended = torch.zeros(B, dtype=torch.bool, device=device)  # [R], which of them have ended
        over, numbers, state = (
            [False] * B,
            list(range(B)),
            None,
        )  # `over` and `numbers` are `ended` and `rows` on the CPU
        for step in range(self.max_length):
            so_far = tokens[rows, : step + 1]  # [R, 1 + step]
            logits, state = model.decoder(so_far, encoded, state)
            log_probs = self._log_probs(model.output(logits)[:, -1], so_far, None if context is None else context[rows])
            chosen, score = self.choose(log_probs, over, numbers)
            tokens[rows, step + 1] = chosen.masked_fill(ended, self.end)
            scores[rows] += score.masked_fill(ended, 0)
            ends = (chosen == self.end) & ~ended
            lengths[rows] = lengths[rows].masked_fill(ends, step + 2)
            ended = ended | ends
            if self.stops is not None:
                stopped = (
                    torch.tensor(list(map(self.stops, tokens[rows, 1 : step + 2].tolist())), device=device) & ~ended
                )
                lengths[rows] = lengths[rows].masked_fill(stopped, min(step + 3, 1 + self.max_length))
                ended = ended | stopped
            over = ended.tolist()  # the only time in a step that the CPU waits for the device
            staying = [row for row, done in enumerate(over) if not done]
            if not staying or step + 1 == self.max_length:
                break
            if len(over) - len(staying) >= _LEAVING_SHARE * len(over):
                kept = torch.tensor(staying, device=device)
                state = model.reorder_decoder_incremental_state(state, kept)
                rows, ended, over = rows[kept], ended[kept], [False] * len(staying)
                numbers = [numbers[row] for row in staying]
        tokens[:, -1] = self.end
        return Replies(tokens, lengths, scores)

    def _log_probs(self, logits: Tensor, so_far: Tensor, context: Tensor | None) -> Tensor:
        """float32 [R, V], with forbidden tokens at `_NEVER`."""
        if self.temperature != 1:
            logits.div_(self.temperature)  # a copy already, see `PromptedLM.output`; a new one costs more than dividing
        log_probs = logits.log_softmax(-1)
        if so_far.shape[1] - 1 < self.min_length:
            log_probs[:, self.end] = _NEVER
        if self.block_ngram > 0:
            _block(log_probs, so_far, so_far, self.block_ngram)
        if self.context_block_ngram > 0:
            assert context is not None, 'context_block_ngram needs the context'
            _block(log_probs, so_far, context, self.context_block_ngram)
        return log_probs


def _block(log_probs: Tensor, so_far: Tensor, source: Tensor, n: int) -> None:
    """In place: forbid the tokens that would complete an n-gram of `source` [R, T] at the end of `so_far` [R, U]."""
    if source.shape[1] < n or so_far.shape[1] < n - 1:
        return
    grams = source.unfold(1, n, 1)  # [R, T - n + 1, n]
    begun = (grams[..., :-1] == so_far[:, None, so_far.shape[1] - n + 1 :]).all(-1)
    V = log_probs.shape[1]
    rows, columns = begun.nonzero(as_tuple=True)
    log_probs[rows, grams[rows, columns, -1] % V] = _NEVER  # % V: n = 1 also blocks the start token, which is negative


# ---- choices ------------------------------------------------------------------------------------------

Draws = Sequence[torch.Generator | None] | None


def greedy(
    log_probs: Tensor, ended: list[bool], rows: Sequence[int] = (), draws: Draws = None
) -> tuple[Tensor, Tensor]:
    """The likeliest token."""
    score, chosen = log_probs.max(-1)
    return chosen, score


def top_k(
    log_probs: Tensor, ended: list[bool], rows: Sequence[int] = (), draws: Draws = None, *, k: int
) -> tuple[Tensor, Tensor]:
    """A token drawn from the k likeliest."""
    values, ids = log_probs.topk(k, dim=-1)
    drawn = _draw(values.softmax(-1), ended, draws)
    return _at(ids, drawn), _at(values, drawn)


def nucleus(
    log_probs: Tensor, ended: list[bool], rows: Sequence[int] = (), draws: Draws = None, *, p: float | Tensor
) -> tuple[Tensor, Tensor]:
    """A token drawn from the likeliest ones that together have probability p; its score is under that distribution.

    p: one number, or one for each row, float32 [R, 1].
    """
    probs, ids = log_probs.softmax(-1).sort(dim=-1, descending=True)
    probs = probs.masked_fill(probs.cumsum(-1) - probs >= p, 0)
    probs = probs / probs.sum(-1, keepdim=True)
    drawn = _draw(probs, ended, draws)
    return _at(ids, drawn), _at(probs, drawn).log()


def _at(values: Tensor, columns: Tensor) -> Tensor:
    return values.gather(1, columns[:, None])[:, 0]


def _draw(probs: Tensor, ended: list[bool], draws: Draws = None) -> Tensor:
    """Draw one column of each row of [R, M] with the given probabilities.

    `torch.multinomial` is a race of exponential waiting times. ParlAI calls it for one row after another. Here one race
    is run for all rows; its noise is drawn row by row, for rows that have not ended, so that the generator is used as
    in ParlAI. draws: a generator for each row; None: torch's.
    """
    noise = torch.ones_like(probs)
    for row, done in enumerate(ended):
        if not done:
            noise[row].exponential_(generator=None if draws is None else draws[row])
    return (probs / noise).argmax(-1)
