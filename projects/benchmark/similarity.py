"""Compare two ways to compute a batch's text similarity: sacrebleu in a loop over pairs, and all pairs at once.

    python projects/benchmark/similarity.py [FILE] [--batch 64] [--rounds 7]

FILE is in ConvAI2's format; the default is the sample task. Every round takes a new batch of each of two kinds: whole
dialogues (consecutive contexts, most of which are prefixes of the next one), and contexts drawn from all dialogues.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import spt_parlai.tasks.sample
from spt_parlai.dialogue.messages import Dialogue
from spt_parlai.dialogue.template import render
from spt_parlai.objective.bleu import pairwise_bleu, sentence_bleu
from spt_parlai.tasks.convai2_files import check_dialogues
from spt_parlai.text_files import read_lines

SAMPLE = Path(spt_parlai.tasks.sample.__file__).with_name('train.txt')


def contexts(path: Path, limit: int) -> list[str]:
    """The first `limit` contexts of a file in order, as the agent renders them."""
    found: list[str] = []
    dialogue = Dialogue()
    check_dialogues(path)
    for line in read_lines(path):
        number, _, text = line.partition(' ')
        if number == '1':
            dialogue = Dialogue()
        heard, *replies = text.split('\t')
        dialogue.observe(heard)
        if replies:
            found.append(render(dialogue))
            dialogue.reply(replies[0])
        if len(found) == limit:
            break
    return found


def loop(texts: Sequence[str]) -> np.ndarray:
    """float64 [B, B] with sacrebleu's value for each pair above the diagonal."""
    bleu = np.zeros((len(texts), len(texts)))
    for m, n in zip(*np.triu_indices(len(texts), k=1), strict=True):
        bleu[m, n] = sentence_bleu(texts[m], texts[n])
    return bleu


def timed(function: Callable[[Sequence[str]], np.ndarray], texts: Sequence[str]) -> tuple[float, np.ndarray]:
    """(milliseconds, result) of one call."""
    start = time.perf_counter()
    bleu = function(texts)
    return 1000 * (time.perf_counter() - start), bleu


def compare(name: str, batches: list[list[str]]) -> None:
    """Print the median times of both ways and the largest difference of their results."""
    old, new, differences = [], [], []
    for texts in batches:
        took, expected = timed(loop, texts)
        old.append(took)
        took, bleu = timed(pairwise_bleu, texts)
        new.append(took)
        differences.append(np.abs(np.triu(bleu, k=1) - expected).max())
    words = statistics.mean(len(text.split()) for texts in batches for text in texts)
    loop_ms, ours_ms = statistics.median(old), statistics.median(new)
    row = f'{name:16} {len(batches[0]):5} {words:6.0f} {loop_ms:10.1f} {ours_ms:9.2f} {loop_ms / ours_ms:6.0f}x'
    print(row, f'{max(differences):11.1e}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('file', nargs='?', type=Path, default=SAMPLE)
    parser.add_argument('--batch', type=int, default=64, help='B, contexts in a batch')
    parser.add_argument('--rounds', type=int, default=7, help='batches of each kind; medians are printed')
    args = parser.parse_args()
    B, needed = args.batch, args.batch * args.rounds
    texts = contexts(args.file, needed)
    if len(texts) < needed:
        raise SystemExit(
            f'{args.file} has {len(texts)} contexts, but {args.rounds} batches of {B} need {needed}; lower --rounds.'
        )
    print(f'{"contexts of":16} {"B":>5} {"words":>6} {"loop, ms":>10} {"ours, ms":>9} {"ratio":>7} {"difference":>11}')
    pairwise_bleu(texts[:2])  # imports and allocations
    drawn = random.Random(0).sample(texts, needed)
    for name, kind in (('whole dialogues', texts), ('any dialogue', drawn)):
        compare(name, [kind[i : i + B] for i in range(0, needed, B)])


if __name__ == '__main__':
    main()
