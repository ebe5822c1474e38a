"""Compare drawing n replies to one context in one batch with n generations one after the other.

    python projects/benchmark/sampling.py [--llms tiny smollm2] [--samples 16] [--prompts 1 4]

An LLM is a shape with random weights (see `shapes.py`) or whatever --llm takes. Both ways draw with the same seeds, and
no reply ends early. The batch has one prefill for each prompt, the other way has one for each reply.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import torch
from report import console, say
from rich.table import Table
from shapes import CONFIGS, build

from spt_parlai.model.candidates import draw_replies
from spt_parlai.model.causal_lm import CausalLM
from spt_parlai.model.decoding import Search, top_k
from spt_parlai.model.prompted_lm import PromptedLM, Selection
from spt_parlai.model.soft_prompts import SoftPromptGroup

LLMS, SAMPLES, PROMPTS = ('tiny', 'smollm2'), 16, (1, 4)
END, START, PADDING = 2, -2, -1


def model_of(llm: str, dtype: str, K: int, L: int = 8) -> PromptedLM:
    loaded = CausalLM(build(llm, dtype))
    return PromptedLM(
        loaded, SoftPromptGroup(0.02 * torch.randn(K, L, loaded.hidden_size)), None, PADDING, START, END
    ).eval()


@torch.no_grad()
def measure(llm: str, dtype: str, K: int, samples: int, context: int, tokens: int, rounds: int) -> dict:
    """Time both ways, in turns. samples: in all, the same number from each of K prompts."""
    torch.manual_seed(0)
    model = model_of(llm, dtype, K)
    ids = torch.randint(100, 1000, (1, context))
    search = Search(partial(top_k, k=20), START, END, tokens, temperature=0.6, min_length=tokens)
    rows, seeds = [i * K // samples for i in range(samples)], list(range(samples))

    def states(prompts: list[int]):
        scores = torch.zeros(len(prompts), K)
        return model.encoder(ids.expand(len(prompts), -1), selection=Selection(scores, torch.tensor(prompts)))

    def together():
        return draw_replies(model, states(list(range(K))), search, rows, seeds).tokens

    def separately():
        one_by_one = zip(rows, seeds, strict=True)
        return torch.cat([draw_replies(model, states([row]), search, [0], [seed]).tokens for row, seed in one_by_one])

    together()  # warm-up
    seconds: dict = {together: [], separately: []}
    busy: dict = {together: [], separately: []}  # processor seconds, for machines that are shared
    for _ in range(rounds):
        found = []
        for way, times in seconds.items():
            start, start_busy = time.perf_counter(), time.process_time()
            found.append(way())
            times.append(time.perf_counter() - start)
            busy[way].append(time.process_time() - start_busy)
    same = int((found[0] == found[1]).all(1).sum())
    batch, alone, batch_busy, alone_busy = (statistics.median(times) for times in (*seconds.values(), *busy.values()))
    return {
        'llm': llm,
        'dtype': dtype,
        'K': K,
        'samples': samples,
        'together_per_s': samples / batch,
        'separately_per_s': samples / alone,
        'ratio': alone / batch,
        'processor_ratio': alone_busy / batch_busy,
        'same': same,
    }


def compare(llms=LLMS, prompts=PROMPTS, samples=SAMPLES, context=128, tokens=32, rounds=3) -> list[dict]:
    """One line for every LLM, in bfloat16 where it has trained weights, and number of prompts."""
    results = []
    for llm in llms:
        for K in prompts:
            say(f'sampling: {llm}, {samples} replies from {K} prompts')
            dtype = 'float32' if llm in CONFIGS else 'bfloat16'
            results.append(measure(llm, dtype, K, samples, context, tokens, rounds))
    return results


def show(results: list[dict]) -> None:
    columns = ('LLM', 'dtype', 'K', 'replies', 'replies/s', 'one by one', 'ratio', 'of processor time', 'same')
    drawn = Table(*columns, title='drawing replies')
    for r in results:
        rates = (f'{r[name]:.3g}' for name in ('together_per_s', 'separately_per_s'))
        ratios = (f'{r[name]:.1f}' for name in ('ratio', 'processor_ratio'))
        same = f'{r["same"]}/{r["samples"]}'
        drawn.add_row(r['llm'], r['dtype'], str(r['K']), str(r['samples']), *rates, *ratios, same)
    console.print(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--llms', nargs='+', default=LLMS)
    parser.add_argument('--prompts', type=int, nargs='+', default=PROMPTS, help='numbers of prompts')
    parser.add_argument('--samples', type=int, default=SAMPLES, help='replies in all')
    parser.add_argument('--context', type=int, default=128, help='tokens of the context')
    parser.add_argument('--tokens', type=int, default=32, help='tokens of a reply')
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()
    show(compare(args.llms, args.prompts, args.samples, args.context, args.tokens, args.rounds))


if __name__ == '__main__':
    main()
