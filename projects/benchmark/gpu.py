"""Ours on one GPU, whole dialogues, as many tokens at once as fit: the fraction of its matrix-product rate, memory, the time of an epoch.

    python projects/benchmark/gpu.py [--shape llama2-7b] [--memory-limit 60] [--data PARLAI_DATAPATH] [--out runs/benchmark]

Needs neither a network nor ParlAI's data. `--device cpu --shape tiny-llama` runs the same script without a GPU.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from job import Job, in_turn
from report import console, environment, say, show, write
from shapes import CONFIGS

EPOCH = 131_438  # examples of ConvAI2's train fold
LENGTHS = {'llama2-7b': 1, 'tiny-llama': 1}  # L of table 6; OPTs: 8
DIALOGUES = 32
TOKENS_AT_ONCE = (2048, 4096, 8192, 16384, 32768)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--shape', choices=CONFIGS, default='llama2-7b')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='bfloat16')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cuda')
    parser.add_argument('--K', type=int, default=4, help='prompts')
    parser.add_argument('--batch', type=int, default=DIALOGUES, help='dialogues a step')
    parser.add_argument(
        '--tokens-at-once', type=int, nargs='+', default=TOKENS_AT_ONCE, help='tried in this order until memory ends'
    )
    parser.add_argument('--prompt-chunk', type=int, default=0, help='as of the package')
    parser.add_argument('--memory-limit', type=float, default=60.0, help='GB; what takes more is not the best')
    parser.add_argument('--recompute', action='store_true', help='as --checkpoint-activations true')
    parser.add_argument('--others', action='store_true', help='the naive pattern, PEFT and ours per turn too')
    parser.add_argument('--steps', type=int, default=3)
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--data', help="ParlAI's datapath with ConvAI2 in it; default: the sample task")
    parser.add_argument(
        '--tokenizer', default='demo', help='folder of an LLM (its config.json and tokenizer) whose ids the shape knows'
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=Path('runs/benchmark'), help='folder of the JSON file')
    return parser.parse_args()


def fill(base: Job, sizes: list[int], limit: float) -> Iterator[dict]:
    """Larger and larger groups of rows, until one is over the limit or does not fit at all."""
    for size in sizes:
        try:
            (result,) = in_turn([replace(base, tokens_at_once=size)], 1, say)
        except torch.OutOfMemoryError:
            return say(f'{size} tokens at once do not fit')
        if result['peak_bytes'] > limit:
            return say(f'{size} tokens at once take {result["peak_bytes"] / 1e9:.1f} GB')
        yield result


def main() -> None:
    args = arguments()
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise SystemExit(
            '--device cuda: torch sees no GPU here; --device cpu --shape tiny-llama runs the same script without one.'
        )
    base = Job(
        'packed',
        args.shape,
        args.dtype,
        args.device,
        args.threads,
        args.K,
        LENGTHS.get(args.shape, 8),
        args.batch,
        prompt_chunk=args.prompt_chunk,
        recompute=args.recompute,
        steps=args.steps,
        seed=args.seed,
        data=args.data,
        tokenizer=args.tokenizer,
    )
    result = environment(args)
    tried = result['tried'] = list(fill(base, args.tokens_at_once, args.memory_limit * 1e9))
    if not tried:
        raise SystemExit(
            f'not even {args.tokens_at_once[0]} tokens fit {args.memory_limit:g} GB: try --recompute, --K 1 or a smaller --shape.'
        )
    best = max(tried, key=lambda r: r['examples_per_s'])
    base = replace(base, tokens_at_once=best['tokens_at_once'])
    (result['profile'],) = in_turn([replace(base, profile=True)], 1, say)
    if args.others:
        result['others'] = in_turn(
            [
                replace(base, contender='naive', batch=2),
                replace(base, contender='per-turn', batch=8),
                replace(base, contender='PEFT', K=1, batch=8),
                replace(base, contender='packed', K=1),
            ],
            1,
            say,
        )
    result['best'] = best
    result['epoch_minutes'] = EPOCH / best['examples_per_s'] / 60
    show(
        f'{args.shape}, {args.dtype}: {result["machine"]["gpu"] or result["machine"]["cpu"]}',
        tried + result.get('others', []),
        'tokens_at_once',
    )
    for name, share in result['profile']['shares'].items():
        console.print(f'{name:14} {share:6.1%}')
    console.print(
        f'best: {best["batch"]} dialogues a step, --tokens-at-once {best["tokens_at_once"]}: {best["examples_per_s"]:.1f} examples/s, '
        f'{best["matmul_fraction"]:.0%} of {best["matmul_flops_per_s"] / 1e12:.3g} TFLOP/s, peak {best["peak_bytes"] / 1e9:.1f} GB; '
        f'one epoch of ConvAI2 ({EPOCH:,} examples): {result["epoch_minutes"]:.1f} minutes'
    )
    write(result, args.out, f'{args.shape}.json')


if __name__ == '__main__':
    main()
