"""Generate replies, force their prefixes and rank candidates.

One search serves the whole batch wherever it finds the same replies as ParlAI's own search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from parlai.core.torch_generator_agent import GreedySearch, NucleusSampling, TopKSampling, TreeSearch
from parlai.utils.torch import neginf
from torch import Tensor

from spt_parlai.model.candidates import target_log_probs
from spt_parlai.model.context_states import ContextStates
from spt_parlai.model.decoding import Choice, DecodingState, Replies, Search, greedy, nucleus, top_k
from spt_parlai.model.prompted_lm import PromptedLM


class FoundReply(NamedTuple):
    """The reply of one row, with the interface of ParlAI's finished search. tokens: int64 [U]; score: float32 []."""

    tokens: Tensor
    score: Tensor

    def get_rescored_finished(self, n_best=None):
        return [(self.tokens, self.score, None)]


def choice_of(search: TreeSearch) -> Choice | None:
    """Return how a search of ParlAI's picks a token, or None if only ParlAI's own loop can run it."""
    if search.beam_size != 1 or search.verbose or search.block_list or search.gpu_beam_blocking:
        return None
    if type(search) is GreedySearch:
        return greedy
    if type(search) is TopKSampling:
        return partial(top_k, k=search.k)
    if type(search) is NucleusSampling:
        return partial(nucleus, p=search.p)
    return None


def search_like(
    search: TreeSearch, temperature: float, max_length: int, stops: Callable[[list[int]], bool] | None = None
) -> Search | None:
    """Return a search for a whole batch with the settings of ParlAI's, or None if only ParlAI's own loop can run it.

    :param stops: as for `Search`.
    """
    choose = choice_of(search)
    if choose is None or max_length < 1:
        return None
    return Search(
        choose,
        search.bos,
        search.eos,
        max_length,
        temperature=temperature,
        min_length=search.min_length,
        block_ngram=search.block_ngram,
        context_block_ngram=search.context_block_ngram,
        stops=stops,
    )


def ending_replies(search: TreeSearch, stops: Callable[[list[int]], bool]) -> TreeSearch:
    """Let a search of ParlAI's end every hypothesis that `stops` accepts: only the end token follows it, at no cost.

    The model runs once more for the step of that end token; what else blocks or delays the end does not count there.
    """
    select_paths = search.select_paths

    def select(logprobs: Tensor, *args):
        over = torch.tensor([stops(ids[1:]) for ids in search.partial_hyps.tolist()], device=logprobs.device)
        logprobs[over[: len(logprobs)]] = neginf(logprobs.dtype)
        logprobs[over[: len(logprobs)], search.eos] = 0
        return select_paths(logprobs, *args)

    search.select_paths = select
    return search


def found_replies(replies: Replies, length_penalty: float) -> list[FoundReply]:
    """Return the replies, their scores divided by Google NMT's length penalty, in which the start token counts."""
    lengths = replies.lengths.tolist()
    penalties = torch.tensor([((1 + n) / 6) ** length_penalty for n in lengths])
    scores = replies.scores / penalties.to(replies.scores.device)
    return [FoundReply(row[:n], score) for row, n, score in zip(replies.tokens, lengths, scores, strict=True)]


def replies_from(states: ContextStates, model: PromptedLM, search: Search, length_penalty: float) -> list[FoundReply]:
    """Return the reply to every example of a pass over dialogues, found in as few batches as memory allows."""
    found: dict[int, FoundReply] = {}
    for examples in states.batches():
        replies = found_replies(search(model, states.of(examples)), length_penalty)
        found |= dict(zip(examples, replies, strict=True))
    return [found[i] for i in sorted(found)]


def blocked_context(contexts: Tensor) -> Tensor:
    """Pad contexts on the left, each with its own first token: context blocking must never see a padding id.

    contexts: int64 [B, T], right-padded with negative ids.
    """
    if not contexts.numel():
        return contexts
    rows = [[i for i in row if i >= 0] for row in contexts.tolist()]
    width = max(map(len, rows))
    return torch.tensor([row[:1] * (width - len(row)) + row for row in rows])


class Prefixes:
    """Makes every reply of a batch begin with its own prefix.

    :param tokens: int64 [B, P], right-padded with negative ids.
    """

    def __init__(self, tokens: Tensor):
        self.tokens = tokens
        self.step = 0

    def force(self, log_probs: Tensor) -> Tensor:
        """Forbid every token but the next one of the prefix, while it lasts.

        :param log_probs: of the next token, [B, beam, V].
        """
        if self.step < self.tokens.shape[1]:
            token = self.tokens[:, self.step].to(log_probs.device)  # [B]
            others = torch.arange(log_probs.shape[-1], device=log_probs.device)[None] != token[:, None]  # [B, V]
            log_probs = log_probs.masked_fill((others & (token >= 0)[:, None])[:, None], neginf(log_probs.dtype))
        self.step += 1
        return log_probs


def rank_candidates(
    model: PromptedLM, encoded: DecodingState, candidates: Sequence[Tensor]
) -> list[tuple[list[int], list[float]]]:
    """Rank each example's candidates by their NLL per token under the selected prompt.

    :param candidates: for each example int64 [C, U], right-padded with negative ids.
    :return: for each example, the numbers of its candidates, best first, and their NLLs in nats per token.
    """
    ranked = []
    for i, ids in enumerate(candidates):
        log_probs = target_log_probs(model, encoded, i, ids).sum(1)
        losses, order = (-log_probs / (ids >= 0).sum(1).to(log_probs.device)).sort()
        ranked.append((order.tolist(), losses.tolist()))
    return ranked
