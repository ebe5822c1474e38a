"""Real dialogues as training examples, made by the package's own template, tokenizer and packing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

import spt_parlai.tasks.sample
from spt_parlai.agents.batching import TurnExample, pack_batch
from spt_parlai.dialogue.dictionary import NULL_ID, TokenizerDictionary
from spt_parlai.dialogue.messages import Dialogue
from spt_parlai.dialogue.template import build_context
from spt_parlai.tasks.convai2_files import check_dialogues
from spt_parlai.text_files import read_lines

SAMPLE = Path(spt_parlai.tasks.sample.__file__).with_name('train.txt')
CONVAI2 = ('ConvAI2/train_self_original_no_cands.txt', 'ConvAI2/train_self_original.txt')

Episode = list[tuple[str, str]]
"""(the partner's message, the reply) of each turn. Persona lines precede the first message, as in ParlAI."""


def episodes(datapath: str | None, limit: int) -> list[Episode]:
    """The first `limit` episodes of ConvAI2 in ParlAI's datapath; without a path, of the sample task, repeated."""
    path = SAMPLE if datapath is None else next((p for name in CONVAI2 if (p := Path(datapath) / name).exists()), None)
    if path is None:
        raise SystemExit(f'--data {datapath}: the folder has no {" or ".join(CONVAI2)}; give the --datapath of ParlAI.')
    found: list[Episode] = []
    heard: list[str] = []
    check_dialogues(path)
    for line in read_lines(path):
        number, _, text = line.partition(' ')
        if number == '1':
            if len(found) == limit:
                break
            found.append([])
            heard = []
        message, *reply = text.split('\t')
        heard.append(message)
        if reply:
            found[-1].append(('\n'.join(heard), reply[0]))
            heard = []
    return (found * -(-limit // len(found)))[:limit]


@dataclass
class Reader:
    """Episodes → turns and batches, with the tokenizer of `llm`, which caches pieces.

    vocabulary: V of the shape; limit: longest context; label_limit: longest target; both in tokens.
    """

    llm: str
    vocabulary: int
    limit: int
    label_limit: int = 128

    def __post_init__(self):
        self.dict = TokenizerDictionary({'llm': self.llm})
        if len(self.dict) > self.vocabulary:
            raise SystemExit(
                f'--tokenizer {self.llm} has {len(self.dict)} tokens, the shape has {self.vocabulary}; give another.'
            )

    def turns(self, episode: Episode) -> list[TurnExample]:
        """The turns that the agent makes of a `whole_dialogue` message."""
        dialogue, turns = Dialogue(), []
        for heard, reply in episode:
            dialogue.observe(heard)
            context = build_context(dialogue, self.dict.piece, self.dict.bos, self.limit)
            ids = self.dict.txt2vec(reply)
            target = [*ids[: self.label_limit - 1], self.dict.eos]
            turns.append(
                TurnExample(
                    list(context.ids), target, context.text, ' '.join(dialogue.persona), context.length, len(ids) + 1
                )
            )
            dialogue.reply(reply)
        return turns

    def packed(self, chosen: Sequence[Episode]) -> dict:
        """Whole dialogues → the batch that the agent makes of them."""
        dialogues = [self.turns(episode) for episode in chosen]
        batch: dict = {}
        pack_batch(batch, dialogues, NULL_ID)
        return batch

    def per_turn(self, chosen: Sequence[tuple[Episode, int]]) -> dict:
        """(episode, number of the turn) of each example → a batch with a row for every turn."""
        turns = [self.turns(episode[: t + 1])[-1] for episode, t in chosen]
        return {
            'text_vec': padded([turn.context for turn in turns]),
            'label_vec': padded([turn.target for turn in turns]),
            'texts': {'context': [turn.text for turn in turns], 'persona': [turn.persona for turn in turns]},
            'batchsize': len(turns),
        }


def padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """int64 [B, T], padded on the right like the agent's batches."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=NULL_ID)


def draw_dialogues(pool: Sequence[Episode], size: int, seed: int) -> Iterator[list[Episode]]:
    """Batches of whole dialogues in random order, without end."""
    drawn = _endless(pool, seed)
    while True:
        yield [next(drawn) for _ in range(size)]


def draw_turns(pool: Sequence[Episode], size: int, seed: int) -> Iterator[list[tuple[Episode, int]]]:
    """Batches of single turns in random order, without end."""
    drawn = _endless([(episode, t) for episode in pool for t in range(len(episode))], seed)
    while True:
        yield [next(drawn) for _ in range(size)]


def _endless(items: Sequence, seed: int) -> Iterator:
    order, items = random.Random(seed), list(items)
    while True:
        order.shuffle(items)
        yield from items
