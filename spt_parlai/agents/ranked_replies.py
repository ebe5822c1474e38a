"""Draw several replies from every prompt and say the one that ranks first (`--candidates-per-prompt`, `--rank-by`)."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spt_parlai.metrics import ranking
from spt_parlai.model.candidates import draw_replies, target_log_probs
from spt_parlai.model.decoding import DecodingState, Search
from spt_parlai.model.prompted_lm import Selection
from spt_parlai.options.declare import Opt, Option, OptionGroup, belongs

_DRAWN = belongs('--candidates-per-prompt', lambda opt: opt.get('candidates_per_prompt', 0) > 0)


def _check_candidates(opt: Opt) -> str | None:
    n, inference = opt['candidates_per_prompt'], opt.get('inference', 'greedy')
    if not n:
        return None
    if inference not in ('greedy', 'topk', 'nucleus') or opt.get('beam_size', 1) > 1:
        return 'candidates are drawn one by one; give --inference topk or nucleus, without --beam-size'
    if inference == 'greedy' and n > 1:
        return 'greedy replies are all the same; add --inference topk or nucleus'
    if opt.get('skip_generation') and not opt.get('interactive_mode'):  # a chat writes replies whatever it says
        return '--skip-generation true writes no replies; leave one of them out'
    taken = next((name for name in ('beam_block_list_filename', 'verbose') if opt.get(name)), None)
    return f'--{taken.replace("_", "-")} needs another search; leave one of them out' if taken else None


CANDIDATES = OptionGroup(
    'Candidates',
    (
        Option(
            'candidates_per_prompt',
            0,
            "draw this many replies from each of the agent's prompts with the chosen --inference, and say the best of "
            'them and of the likeliest reply (0: one reply)',
            int,
            at_least=0,
            note='0 searches for one reply',
            check=_check_candidates,
        ),
        Option(
            'rank_by',
            'likelihood',
            'what ranks them. likelihood: under the mixture of all prompts; mmi: that less what the reply has without '
            'the context; mbr: agreement with the other candidates; persona: overlap with the persona',
            choices=('likelihood', 'mmi', 'mbr', 'persona'),
            needs=_DRAWN,
        ),
        Option(
            'mmi_lambda',
            0.5,
            'weight of the likelihood without the context in --rank-by mmi',
            float,
            at_least=0,
            needs=belongs('--rank-by mmi', lambda opt: opt.get('rank_by') == 'mmi'),
        ),
    ),
)


class Candidate(NamedTuple):
    """One reply to a context. tokens: int64 [U]; prompt: the one that it was drawn from; score: what ranks it."""

    tokens: Tensor
    text: str
    prompt: int
    score: float


class RankedReplies(NamedTuple):
    """The candidates of one context, best first, with the interface of ParlAI's finished search."""

    candidates: list[Candidate]

    def get_rescored_finished(self, n_best=None):
        return [(c.tokens, torch.tensor(c.score), None) for c in self.candidates[:n_best]]

    def log(self) -> list[dict[str, Any]]:
        """What world logs and chats keep."""
        return [
            {'rank': rank, 'prompt': c.prompt, 'score': float(f'{c.score:.6g}'), 'text': c.text}
            for rank, c in enumerate(self.candidates)
        ]


def ranked_replies(agent, batch, search: Search) -> list[RankedReplies]:
    """Draw and rank the candidates of every context of a batch.

    The first candidate of a context is the likeliest reply of the selected prompt. Of equal scores the first wins.
    """
    model, opt = agent.bare_model, agent.opt
    n = opt['candidates_per_prompt']
    scores, selected = batch['selection']
    K = model.soft_prompts.num_prompts
    prompts = [model.force_prompt] if model.force_prompt >= 0 else list(range(K))
    B, P = len(selected), len(prompts)
    encoded = _encoded(model, batch.text_vec, scores, prompts)
    rows: list[int] = []
    seeds: list[int | None] = []
    of_prompt: list[int] = []
    for i, (ids, own) in enumerate(zip(batch.text_vec.tolist(), selected.tolist(), strict=True)):
        drawn = [(p, _seed(agent.draw_seed, ids, p, j)) for p in prompts for j in range(n)]
        for prompt, seed in [(own, None), *drawn]:
            rows.append(i * P + prompts.index(prompt))
            seeds.append(seed)
            of_prompt.append(prompt)
    context = agent._get_batch_context(batch).repeat_interleave(P, 0) if search.context_block_ngram > 0 else None
    found = draw_replies(model, encoded, search, rows, seeds, context)
    tokens = [row[:length] for row, length in zip(found.tokens, found.lengths.tolist(), strict=True)]
    texts = [agent._v2t(reply) for reply in tokens]
    without = None
    if opt['rank_by'] == 'mmi':
        nothing = torch.tensor([agent._new_history().context(()).ids])
        without = _encoded(model, nothing, scores[:1], prompts)
    C, ranked = 1 + n * P, []
    for i in range(B):
        own = slice(i * C, (i + 1) * C)
        if opt['rank_by'] == 'mbr':
            values = ranking.consensus(texts[own])
        elif opt['rank_by'] == 'persona':
            values = [ranking.persona_overlap(text, batch.texts['persona'][i]) for text in texts[own]]
        else:
            log_weights = (scores[i, prompts] / opt.get('tau_score', 1.0)).log_softmax(-1).cpu()
            value = _likelihood(agent, encoded, i * P, texts[own], log_weights)
            if without is not None:
                value = value - opt['mmi_lambda'] * _likelihood(agent, without, 0, texts[own], log_weights)
            values = value.tolist()
        candidates = list(map(Candidate, tokens[own], texts[own], of_prompt[own], values))
        ranked.append(RankedReplies(sorted(candidates, key=lambda c: -c.score)))
    return ranked


def _encoded(model, contexts: Tensor, scores: Tensor, prompts: list[int]) -> DecodingState:
    """The states of every context after every prompt, in this order: [B · P]."""
    of = torch.arange(len(contexts)).repeat_interleave(len(prompts))
    after = torch.tensor(prompts, device=scores.device).repeat(len(contexts))
    return model.encoder(contexts[of.to(contexts.device)], selection=Selection(scores[of.to(scores.device)], after))


def _likelihood(agent, encoded: DecodingState, first: int, texts: list[str], log_weights: Tensor) -> Tensor:
    """Score texts as labels of one context, whose states begin at row `first`: their tokens and the end. float64 [C]"""
    limit = max(agent.label_truncate, agent.opt['max_new_tokens'])
    K, different = len(log_weights), list(dict.fromkeys(texts))
    ids = [torch.tensor(agent.batcher.target(text, limit)[0]) for text in different]
    targets = pad_sequence(ids, batch_first=True, padding_value=agent.NULL_IDX)
    log_probs = torch.stack(
        [target_log_probs(agent.bare_model, encoded, first + p, targets).double().sum(1) for p in range(K)]
    )
    values = ranking.mixture_likelihood(log_probs.cpu(), log_weights, torch.tensor(list(map(len, ids))))
    return values[[different.index(text) for text in texts]]


def _seed(seed: int, context: list[int], prompt: int, j: int) -> int:
    """The seed of a draw, which depends on nothing but the run's, the context, the prompt and the draw's number."""
    told = repr((seed, [i for i in context if i >= 0], prompt, j)).encode()
    return int.from_bytes(hashlib.blake2b(told, digest_size=7).digest(), 'big')
