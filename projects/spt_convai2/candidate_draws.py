"""Draw candidate replies for whole dialogues of a corpus, and read them again with the frozen LLM."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spt_parlai.errors import UsageError
from spt_parlai.metrics.ranking import persona_overlap
from spt_parlai.metrics.reply import rouge, trim, unigram_f1, words
from spt_parlai.model.decoding import DecodingState, Search
from spt_parlai.model.prompted_lm import PromptedLM
from spt_parlai.model.rows import join_chosen
from spt_parlai.model.target_log_probs import token_log_probs

TOP_K, TEMPERATURE = 50, 0.6


class Context(NamedTuple):
    """A context and its gold reply. ids: token ids; dialogue: its number in what was drawn of the fold."""

    ids: list[int]
    said: str
    persona: str
    gold: str
    dialogue: int


class Replies(NamedTuple):
    """The candidates of B contexts, C each, the likeliest reply first.

    texts: [B][C]; log_probs, alone: float32 [B, C], log p(y | c) and log p(y) without a context, summed over tokens;
    tokens: int64 [B, C], with the end; hidden: float32 [B, C, D], the LLM's last hidden states, averaged over the
    reply's words; context: float32 [B, D], the same of the context.
    """

    texts: list[list[str]]
    log_probs: Tensor
    alone: Tensor
    tokens: Tensor
    hidden: Tensor
    context: Tensor


# ---- contexts --------------------------------------------------------------------------------------------------


def contexts_of(agent, task: str, fold: str, data: Path | None, at_least: int, seed: int) -> list[Context]:
    """Contexts of whole dialogues of a fold, drawn by seed, until there are enough or no more."""
    from parlai.core.params import ParlaiParser
    from parlai.core.teachers import create_task_agent_from_taskname

    from spt_parlai.dialogue.episode import Episode
    from spt_parlai.dialogue.messages import split_message, well_formed

    place = {} if data is None else {'datapath': str(data)}
    opt = ParlaiParser(True, True).parse_kwargs(task=task, datatype=fold, batchsize=1, **place)
    (teacher,) = create_task_agent_from_taskname(opt)
    episodes: list[list] = [[]]
    while len(episodes) <= teacher.num_episodes():
        episodes[-1].append(teacher.act())
        if episodes[-1][-1]['episode_done']:
            episodes.append([])
    random.Random(seed).shuffle(drawn := episodes[:-1])
    found: list[Context] = []
    for number, messages in enumerate(drawn):
        if len(found) >= at_least:
            break
        turns = well_formed(Episode(messages).turns)
        labelled = [turn for turn in turns if turn['labels']]
        for turn, example in zip(labelled, agent.batcher.examples(turns, agent.label_truncate), strict=True):
            said = split_message(turn['text'])[1]
            found.append(Context(example.context, said, example.persona, turn['labels'][0], number))
    return found


# ---- candidates ------------------------------------------------------------------------------------------------


def agent_of(model: str, llm: str | None, seed: int):
    """The agent of a model file, with the options of drawing."""
    from parlai.core.agents import create_agent
    from parlai.core.params import ParlaiParser

    given: dict[str, Any] = {} if llm is None else {'llm': llm}
    drawing = {'inference': 'topk', 'topk': TOP_K, 'temperature': TEMPERATURE, 'skip_generation': False}
    opt = ParlaiParser(True, True).parse_kwargs(model_file=model, datatype='valid', seed=seed, **drawing, **given)
    agent = create_agent(opt)
    agent.model.eval()
    if not agent.bare_model.llm.head_is_linear:
        raise UsageError(f'--llm {agent.opt["llm"]}: its logits are not a linear layer of hidden states; give another.')
    return agent


def search_of(agent) -> Search:
    """The search that the agent would use; `GreedyAndDraws` replaces its choice."""
    from spt_parlai.agents.generation import search_like

    like = agent._treesearch_factory(agent.bare_model.llm.device).set_block_list(agent.beam_block_list)
    search = search_like(like, agent.temperature, agent.opt['max_new_tokens'])
    assert search is not None
    return search


def draw_all(
    agent, contexts: Sequence[Context], C: int, at_once: int, report: Callable[[str], None] = lambda line: None
) -> Replies:
    """The candidates of all contexts, of which `at_once` of similar length are drawn together.

    :param report: told how far it is.
    """
    model, search, started = agent.bare_model, search_of(agent), time.perf_counter()
    with torch.no_grad():
        nothing = model.encoder(torch.tensor([agent._new_history().context(()).ids]))
    order = sorted(range(len(contexts)), key=lambda i: len(contexts[i].ids), reverse=True)
    parts = []
    for first in range(0, len(order), at_once):
        parts.append(draw_for(agent, search, nothing, [contexts[i] for i in order[first : first + at_once]], C))
        seconds = time.perf_counter() - started
        report(f'{seconds:.0f} s: {min(first + at_once, len(order))} of {len(order)} contexts')
    back = torch.tensor(order).argsort()
    texts = [texts for part in parts for texts in part.texts]
    tensors = (torch.cat(tensors)[back] for tensors in zip(*(part[1:] for part in parts), strict=True))
    return Replies([texts[i] for i in back.tolist()], *tensors)


class GreedyAndDraws:
    """A `decoding.Choice` for groups of C rows: the first takes the likeliest tokens, the others draw theirs.

    All rows of a step are drawn at once, so a draw depends on the rows beside it. That is faster than `OwnDraws`.
    """

    def __init__(self, C: int, k: int):
        self.C, self.k = C, k

    def __call__(self, log_probs: Tensor, ended: list[bool], rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        values, ids = log_probs.topk(min(self.k, log_probs.shape[-1]), dim=-1)  # [R, k], the likeliest first
        noise = torch.empty_like(values).exponential_()
        first = torch.tensor([row % self.C == 0 for row in rows], device=values.device)
        column = (values.softmax(-1) / noise).argmax(-1).masked_fill(first, 0)[:, None]
        return ids.gather(1, column)[:, 0], values.gather(1, column)[:, 0]


@torch.no_grad()
def draw_for(agent, search: Search, nothing: DecodingState, contexts: Sequence[Context], C: int) -> Replies:
    """Draw C candidates of every context and read them again. nothing: the state without a context, one row."""
    model: PromptedLM = agent.bare_model
    ids = pad_sequence([torch.tensor(c.ids) for c in contexts], batch_first=True, padding_value=-1)
    encoded = model.encoder(ids)
    device = encoded.logits.device
    rows = torch.arange(len(contexts), device=device).repeat_interleave(C)
    found = replace(search, choose=GreedyAndDraws(C, TOP_K))(model, encoded.reordered(rows))
    tokens = zip(found.tokens.tolist(), found.lengths.tolist(), strict=True)
    texts = [trim(agent._v2t(row[:length])) for row, length in tokens]
    limit = max(agent.label_truncate, agent.opt['max_new_tokens'])
    targets = [torch.tensor(agent.batcher.target(text, limit)[0]) for text in texts]
    padded = pad_sequence(targets, batch_first=True, padding_value=-1).to(device)
    log_probs, hidden = read(model, encoded.reordered(rows), padded)
    alone, _ = read(model, nothing.reordered(torch.zeros_like(rows)), padded)
    B = len(contexts)
    return Replies(
        [texts[i * C : (i + 1) * C] for i in range(B)],
        log_probs.view(B, C).cpu(),
        alone.view(B, C).cpu(),
        (padded >= 0).sum(1).view(B, C).cpu(),
        hidden.view(B, C, -1).cpu(),
        context_states(model, ids, encoded.selected).cpu(),
    )


def read(model: PromptedLM, state: DecodingState, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Read a reply after each row: targets int64 [R, U], which end in the end token, right-padded with negative ids.

    :return: (log p(y | row) float32 [R], mean hidden state of its words float32 [R, D], 0 if it has none). The cache of
        `state` is consumed.
    """
    llm, there = model.llm, targets >= 0
    grown = state.extended(there)
    output = llm._forward(
        llm.lm.base_model, llm.embed(targets.clamp(min=0)), grown.mask, use_cache=True, past_key_values=state.cache
    )
    hidden = output.last_hidden_state  # [R, U, D], each after its token
    follows = there[:, 1:]
    head = llm.lm.get_output_embeddings()
    of = targets[:, 1:][follows]
    rest, _ = token_log_probs(hidden[:, :-1][follows], head.weight, head.bias, of, torch.zeros_like(of, dtype=bool))
    first = state.logits.float().log_softmax(-1).gather(1, targets[:, :1])[:, 0]
    log_probs = first.index_add(0, follows.nonzero()[:, 0], rest)
    is_word = torch.nn.functional.pad(follows, (0, 1))  # all but the end token, which nothing follows
    return log_probs, masked_mean(hidden, is_word)


def context_states(model: PromptedLM, contexts: Tensor, selected: Tensor) -> Tensor:
    """The mean hidden state of each context after its prompt: int64 [B, T], int64 [B] → float32 [B, D]."""
    embedded, mask = model._embed_contexts(contexts)
    prompts = model.soft_prompts.tokens[selected]
    rows, row_mask = join_chosen(prompts, embedded, mask)
    hidden = model.llm._forward(model.llm.lm.base_model, rows, row_mask).last_hidden_state
    return masked_mean(hidden, row_mask & (row_mask.cumsum(1) > prompts.shape[1]))


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """[R, T, D], bool [R, T] → float32 [R, D]; 0 for rows that have nothing."""
    total = torch.einsum('rtd,rt->rd', hidden.float(), mask.to(hidden.device).float())
    return total / mask.sum(1, keepdim=True).clamp(min=1).to(total)


# ---- what texts alone tell ----------------------------------------------------------------------------------------


def text_scores(replies: Sequence[str], gold: str, persona: str) -> np.ndarray:
    """float32 [C, 5]: F1, sentence BLEU and ROUGE-L with the gold reply (0 to 100), consensus, persona overlap."""
    return np.column_stack(
        [
            [[100 * unigram_f1(r, (gold,)), _bleu(r, gold), 100 * rouge(r, (gold,))['rougeL']] for r in replies],
            fast_consensus(replies),
            [persona_overlap(r, persona) for r in replies],
        ]
    ).astype(np.float32)


def fast_consensus(replies: Sequence[str]) -> np.ndarray:
    """`ranking.consensus` with every reply counted once: float64 [C]."""
    counts, number = [Counter(words(reply)) for reply in replies], {}
    table = np.zeros((len(replies), sum(map(len, counts)) or 1))
    for row, count in zip(table, counts, strict=True):
        for word, times in count.items():
            row[number.setdefault(word, len(number))] = times
    common = np.minimum(table[:, None], table[None]).sum(-1)  # [C, C]
    length = table.sum(1)
    f1 = 2 * common / np.maximum(length[:, None] + length[None], 1)
    np.fill_diagonal(f1, 0)
    return f1.sum(1) / max(len(replies) - 1, 1)


def _bleu(reply: str, gold: str) -> float:
    from sacrebleu import sentence_bleu

    return sentence_bleu(reply, [gold]).score


# ---- hidden states in few numbers ---------------------------------------------------------------------------------


def principal(states: np.ndarray, dimensions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The principal axes of standardized states: float32 [N, D] → (mean [D], deviation [D], axes [D, d]).

    The axes are divided by the deviation along them, so that `project` gives numbers of deviation 1.
    """
    mean, deviation = states.mean(0), states.std(0) + 1e-6
    scaled = (states - mean) / deviation
    values, axes = np.linalg.eigh(np.cov(scaled, rowvar=False))
    kept = slice(-1, -1 - min(dimensions, len(values)), -1)
    return mean, deviation, axes[:, kept] / np.sqrt(np.maximum(values[kept], 1e-6))


def project(states: np.ndarray, mean: np.ndarray, deviation: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """float32 [..., D] → float16 [..., d]."""
    return ((states - mean) / deviation @ axes).astype(np.float16)
