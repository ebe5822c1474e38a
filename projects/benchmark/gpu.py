"""Measure this package on one GPU, with whole dialogues and as many tokens at once as fit.

    python projects/benchmark/gpu.py [--shape llama2-7b] [--memory-limit 60] [--data DATAPATH] [--out FOLDER]

Reported are the fraction of the GPU's rate of matrix products, the peak memory and the time of an epoch. The script
needs neither a network nor ParlAI's data. `--device cpu --shape tiny-llama` runs it without a GPU.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from job import Job, run_in_rounds
from report import console, environment, say, show, write
from shapes import CONFIGS

EPOCH = 131_438  # examples in ConvAI2's train fold
LENGTHS = {'llama2-7b': 1, 'tiny-llama': 1}  # L of table 6; that of OPT is 8
DIALOGUES = 32
TOKENS_AT_ONCE = (2048, 4096, 8192, 16384, 32768)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--shape', choices=CONFIGS, default='llama2-7b')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='bfloat16')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cuda')
    parser.add_argument('--K', type=int, default=4, help='prompts')
    parser.add_argument('--batch', type=int, default=DIALOGUES, help='dialogues per step')
    parser.add_argument(
        '--tokens-at-once',
        type=int,
        nargs='+',
        default=TOKENS_AT_ONCE,
        help='values to try, in this order, until one does not fit into memory',
    )
    parser.add_argument('--prompt-chunk', type=int, default=0, help='--prompt-chunk of the package')
    parser.add_argument('--memory-limit', type=float, default=60.0, help='GB that a run may take')
    parser.add_argument('--recompute', action='store_true', help='use --checkpoint-activations true')
    parser.add_argument(
        '--others', action='store_true', help='also measure the naive pattern, PEFT and this package per turn'
    )
    parser.add_argument('--steps', type=int, default=3)
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--data', help="ParlAI's datapath with ConvAI2 in it; default: the sample task")
    parser.add_argument(
        '--tokenizer',
        default='demo',
        help="folder of an LLM (its config.json and tokenizer) whose token ids fit the shape's vocabulary",
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=Path('runs/benchmark'), help='folder of the JSON file')
    return parser.parse_args()


def fill(base: Job, sizes: list[int], limit: float) -> Iterator[dict]:
    """Results with more and more tokens at once, until they exceed the limit (in bytes) or do not fit at all."""
    for size in sizes:
        try:
            (result,) = run_in_rounds([replace(base, tokens_at_once=size)], 1, say)
        except torch.OutOfMemoryError:
            return say(f'{size} tokens at once do not fit')
        if result['peak_bytes'] > limit:
            return say(f'{size} tokens at once take {result["peak_bytes"] / 1e9:.1f} GB')
        yield result


def main() -> None:
    args = arguments()
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise SystemExit(
            '--device cuda: torch finds no GPU; --device cpu --shape tiny-llama runs the same script without one.'
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
            f'--tokens-at-once {args.tokens_at_once[0]} does not fit into {args.memory_limit:g} GB: '
            'try --recompute, --K 1 or a smaller --shape.'
        )
    best = max(tried, key=lambda r: r['examples_per_s'])
    base = replace(base, tokens_at_once=best['tokens_at_once'])
    (result['profile'],) = run_in_rounds([replace(base, profile=True)], 1, say)
    if args.others:
        result['others'] = run_in_rounds(
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
        f'best: {best["batch"]} dialogues per step, --tokens-at-once {best["tokens_at_once"]}: '
        f'{best["examples_per_s"]:.1f} examples/s, {best["matmul_fraction"]:.0%} of '
        f'{best["matmul_flops_per_s"] / 1e12:.3g} TFLOP/s, peak {best["peak_bytes"] / 1e9:.1f} GB; '
        f'one epoch of ConvAI2 ({EPOCH:,} examples): {result["epoch_minutes"]:.1f} minutes'
    )
    write(result, args.out, f'{args.shape}.json')


if __name__ == '__main__':
    main()
