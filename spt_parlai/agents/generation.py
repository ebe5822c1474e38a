"""ParlAI's search, where one tensor search for the whole batch gives the same: see `spt_parlai.model.decoding`."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from parlai.core.torch_generator_agent import GreedySearch, NucleusSampling, TopKSampling, TreeSearch

from spt_parlai.model.decoding import Choice, Replies, Search, greedy, nucleus, top_k


class FoundReply(NamedTuple):
    """One row's reply, where ParlAI has a finished `TreeSearch`. tokens: int64 [U]; score: float32 []."""

    tokens: torch.Tensor
    score: torch.Tensor

    def get_rescored_finished(self, n_best=None):
        return [(self.tokens, self.score, None)]


def choice_of(search: TreeSearch) -> Choice | None:
    """How one of ParlAI's searches picks a token; None if it does something that needs its own loop."""
    if search.beam_size != 1 or search.verbose or search.block_list or search.gpu_beam_blocking:
        return None
    if type(search) is GreedySearch:
        return greedy
    if type(search) is TopKSampling:
        return partial(top_k, k=search.k)
    if type(search) is NucleusSampling:
        return partial(nucleus, p=search.p)
    return None


def search_batch(agent, batch, max_length: int) -> list[FoundReply] | None:
    """What `TorchGeneratorAgent._generate` finds for every row, or None where its own loop is needed.

    The settings are read off the search that the agent's factory makes, so that they are ParlAI's own.
    """
    device = batch.text_vec.device
    like = agent._treesearch_factory(device, verbose=agent.show_token_details).set_block_list(agent.beam_block_list)
    choose = choice_of(like)
    if choose is None or max_length < 1 or hasattr(agent, '_rerank_beams'):
        return None
    search = Search(
        choose,
        like.bos,
        like.eos,
        max_length,
        temperature=agent.temperature,
        min_length=like.min_length,
        block_ngram=like.block_ngram,
        context_block_ngram=like.context_block_ngram,
    )
    model = agent.bare_model
    encoded = model.encoder(*agent._encoder_input(batch))
    return found_replies(
        search(model, encoded, agent._get_batch_context(batch).to(encoded.logits.device)), like.length_penalty
    )


def found_replies(replies: Replies, length_penalty: float) -> list[FoundReply]:
    """Scores divided by Google NMT's length penalty, the start token counted as ParlAI counts it."""
    lengths = replies.lengths.tolist()
    penalties = torch.tensor([((1 + n) / 6) ** length_penalty for n in lengths])
    scores = replies.scores / penalties.to(replies.scores.device)
    return [FoundReply(row[:n], score) for row, n, score in zip(replies.tokens, lengths, scores)]
