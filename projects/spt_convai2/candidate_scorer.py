"""Small rerankers of candidate replies: a linear layer or an MLP, trained for the quality of what they choose."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spt_parlai.errors import UsageError
from spt_parlai.metrics.reply import unigram_f1


class Drawn(NamedTuple):
    """What `draw` wrote of N contexts, with C candidates each; the first is the greedy reply.

    quality: float32 [N, C], the mean of F1, BLEU and ROUGE-L; scalars: float32 [N, C, S], see `scalars_of`; hidden:
    float32 [N, C, d]; context: float32 [N, d]; dialogue: int64 [N]; replies: [N][C]; the others as in the file.
    """

    quality: Tensor
    scalars: Tensor
    hidden: Tensor
    context: Tensor
    dialogue: Tensor
    valid: Tensor
    rules: dict[str, Tensor]
    replies: list[list[str]]
    said: list[str]
    persona: list[str]
    gold: list[str]

    def part(self, chosen: Tensor) -> Drawn:
        """Some of the contexts: bool [N]."""
        numbers = chosen.nonzero()[:, 0].tolist()
        texts = ([of[i] for i in numbers] for of in (self.replies, self.said, self.persona, self.gold))
        rules = {name: scores[chosen] for name, scores in self.rules.items()}
        return Drawn(*(of[chosen] for of in self[:6]), rules, *texts)


SCALARS = ('log p', 'log p alone', 'tokens', 'persona', 'greedy', 'question', 'repeats the message', 'consensus')


def read_drawn(path: Path) -> Drawn:
    """Read a file of `draw`.

    :raises UsageError: if it is none.
    """
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in file.files}
        texts = json.loads(found['texts'].tobytes())
        log_probs, alone, tokens, consensus, persona, quality, hidden, context, dialogue = (
            torch.from_numpy(found[name].astype(np.int64 if name == 'dialogue' else np.float32))
            for name in (
                'log_probs',
                'alone',
                'tokens',
                'consensus',
                'persona',
                'quality',
                'hidden',
                'context',
                'dialogue',
            )
        )
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f'{path} holds no candidates ({error}); write it with `draw`.') from error
    replies = texts['replies']
    of_text = [
        [(float('?' in r), unigram_f1(r, (said,))) for r in group]
        for group, said in zip(replies, texts['said'], strict=True)
    ]
    likelihood, unconditional = log_probs / tokens, alone / tokens
    is_greedy = torch.zeros_like(tokens)
    is_greedy[:, 0] = 1
    question, repeats = torch.tensor(of_text).unbind(-1)
    scalars = torch.stack([likelihood, unconditional, tokens, persona, is_greedy, question, repeats, consensus], -1)
    rules = {'likelihood': likelihood, 'MMI': likelihood - 0.5 * unconditional, 'consensus': consensus}
    return Drawn(
        quality.mean(-1),
        scalars,
        hidden,
        context,
        dialogue,
        torch.from_numpy(found['valid']),
        rules,
        replies,
        texts['said'],
        texts['persona'],
        texts['gold'],
    )


def centered(values: Tensor) -> Tensor:
    """Less the mean over the candidates of a context: [N, C, S] → [N, C, S]."""
    return values - values.mean(1, keepdim=True)


class Reranker(torch.nn.Module):
    """Scores candidates: a linear layer of scalars and, if `width` is positive, an MLP of states and scalars.

    :param used: the numbers of the scalars that are used.
    :param scale: float32 [S], the scalars' deviation within a context.
    """

    def __init__(self, used: Sequence[int], scale: Tensor, d: int, width: int, dropout: float = 0.3):
        super().__init__()
        self.used = list(used)
        self.register_buffer('scale', scale[self.used])
        self.linear = torch.nn.Linear(len(self.used), 1, bias=False)
        torch.nn.init.zeros_(self.linear.weight)
        self.mlp = None
        if width:
            self.mlp = torch.nn.Sequential(
                torch.nn.Dropout(dropout),
                torch.nn.Linear(len(self.used) + 2 * d, width),
                torch.nn.GELU(),
                torch.nn.Dropout(dropout),
                torch.nn.Linear(width, 1),
            )

    def forward(self, scalars: Tensor, hidden: Tensor, context: Tensor) -> Tensor:
        """float32 [N, C, S], [N, C, d], [N, d] → scores [N, C]."""
        scalars = centered(scalars[..., self.used]) / self.scale
        score = self.linear(scalars)[..., 0]
        if self.mlp is not None:
            around = context[:, None].expand_as(hidden)
            score = score + self.mlp(torch.cat([scalars, centered(hidden), around], -1))[..., 0]
        return score


def risk(scores: Tensor, quality: Tensor) -> Tensor:
    """Less the quality to expect of a reply that is drawn from the softmax of the scores: [N, C], [N, C] → []."""
    return -(scores.softmax(-1) * centered(quality[..., None])[..., 0]).sum(-1).mean()


def train_reranker(model: Reranker, train: Drawn, tune: Drawn, seed: int, epochs: int = 100, patience: int = 8) -> None:
    """Minimize the risk on `train`, and keep the weights with the least risk on `tune`."""
    generator = torch.Generator().manual_seed(seed)
    groups = [{'params': model.linear.parameters(), 'lr': 1e-2}]  # few weights, which begin at 0
    if model.mlp is not None:
        groups.append({'params': model.mlp.parameters()})
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)
    best, kept, left = float('inf'), copy.deepcopy(model.state_dict()), patience
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(train.quality), generator=generator).split(64):
            optimizer.zero_grad()
            loss = risk(model(train.scalars[rows], train.hidden[rows], train.context[rows]), train.quality[rows])
            loss.backward()
            optimizer.step()
        found = float(risk(scores_of(model, tune), tune.quality))
        if found < best:
            best, kept, left = found, copy.deepcopy(model.state_dict()), patience
        elif (left := left - 1) == 0:
            break
    model.load_state_dict(kept)


@torch.no_grad()
def scores_of(model: Reranker, drawn: Drawn) -> Tensor:
    return model.eval()(drawn.scalars, drawn.hidden, drawn.context)


def split(drawn: Drawn, seed: int, share: float = 0.15) -> tuple[Drawn, Drawn]:
    """The train fold without a share of its dialogues, and those dialogues, on which training stops."""
    dialogues = drawn.dialogue[~drawn.valid].unique().tolist()
    random.Random(seed).shuffle(dialogues)
    tuned = torch.isin(drawn.dialogue, torch.tensor(dialogues[: max(1, round(share * len(dialogues)))]))
    return drawn.part(~drawn.valid & ~tuned), drawn.part(~drawn.valid & tuned)


def fitted(drawn: Drawn, seeds: Sequence[int], used: Sequence[int], width: int) -> list[tuple[Reranker, Drawn]]:
    """A reranker for each seed, which splits, starts and shuffles, with the part on which its training stopped."""
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        train, tune = split(drawn, seed)
        model = Reranker(used, centered(train.scalars).flatten(0, 1).std(0) + 1e-6, train.hidden.shape[-1], width)
        train_reranker(model, train, tune, seed)
        found.append((model, tune))
    return found


def weight_of_consensus(models: Sequence[tuple[Reranker, Drawn]]) -> float:
    """How much consensus to add to the rerankers' scores: the best of a grid on the parts where training stopped."""

    def quality(weight: float) -> float:
        return sum(
            float(chosen_quality(scores_of(model, tune) + weight * tune.rules['consensus'], tune).sum())
            for model, tune in models
        )

    return max((0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0), key=quality)


def chosen_quality(scores: Tensor, drawn: Drawn) -> Tensor:
    return drawn.quality.gather(1, scores.argmax(1, keepdim=True))[:, 0]
