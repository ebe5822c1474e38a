"""Measure this machine: how fast it trains and evaluates an agent around an LLM, and how long ConvAI2 would take.

    python projects/benchmark/machine.py --llm smollm2

Training and evaluation run on whole dialogues, with this package's defaults, on the GPU if there is one. The rate of
the machine is that of its own matrix products in the same dtype, measured around every step.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from dialogues import episodes
from flops import SQUARE, matmul_rate
from job import Job, run_in_rounds
from report import console, environment, say, write
from rich.table import Table
from shapes import CONFIGS, LLM_HELP, TOKENIZER_HELP

from spt_parlai.checkpoints.files import check_writable
from spt_parlai.errors import naming
from spt_parlai.hub import load_config, load_tokenizer

EPOCH = 131_438  # examples in ConvAI2's train fold: 17,878 dialogues
DIALOGUES = {'cpu': 4, 'cuda': 32}
TOKENS_AT_ONCE = {'cpu': (0,), 'cuda': (8192, 16384, 32768)}  # 0 is the package's default
WARM_UP = {'cpu': 1, 'cuda': 5}
STEPS = {'cpu': 3, 'cuda': 20}
COLUMNS = (
    'LLM',
    'tokens at once',
    'examples/s',
    'of the rate',
    'peak, GB',
    'hours per epoch',
    'evaluation, examples/s',
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--llm', nargs='+', default=['demo'], help=LLM_HELP)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--dtype',
        choices=('float32', 'bfloat16'),
        help='default: the one in which this machine multiplies matrices faster',
    )
    parser.add_argument('--K', type=int, default=4, help='prompts')
    parser.add_argument('--L', type=int, default=8, help='tokens per prompt')
    parser.add_argument('--batch', type=int, help='dialogues per step; default: 4, on a GPU 32')
    parser.add_argument(
        '--tokens-at-once', type=int, nargs='+', help='values to try; default: that of the agents, on a GPU also more'
    )
    parser.add_argument('--recompute', action='store_true', help='use --checkpoint-activations true')
    parser.add_argument('--compile', action='store_true', help='use --llm-compile true')
    parser.add_argument('--rounds', type=int, default=1, help='how often each measurement runs')
    parser.add_argument('--steps', type=int, help='timed steps in each run; default: 3, on a GPU 20')
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--data', help="ParlAI's datapath with ConvAI2 in it; default: the sample task")
    parser.add_argument('--tokenizer', help=TOKENIZER_HELP)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=Path('runs/benchmark'), help='folder of machine.json')
    args = parser.parse_args()
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: torch finds no GPU; --device cpu needs none.')
    args.batch = args.batch or DIALOGUES[args.device]
    args.steps = args.steps or STEPS[args.device]
    args.tokens_at_once = args.tokens_at_once or TOKENS_AT_ONCE[args.device]
    return args


def faster_dtype(device: torch.device, threads: int) -> str:
    """The name of the dtype in which this machine multiplies matrices faster."""
    torch.set_num_threads(threads)
    small = SQUARE[device.type] // 4  # without bfloat16 instructions the usual one takes minutes
    return max(('float32', 'bfloat16'), key=lambda name: matmul_rate(getattr(torch, name), device, small))


def tried(base: Job, sizes: Sequence[int], rounds: int) -> list[dict]:
    """A result for every number of tokens at once, up to the first that does not fit into memory."""
    results = []
    for size in sizes:
        try:
            results += run_in_rounds([replace(base, tokens_at_once=size)], rounds, say)
        except torch.OutOfMemoryError:
            say(f'{base.llm}: {size} tokens at once do not fit')
            break
    if not results:
        raise SystemExit(
            f'--tokens-at-once {sizes[0]} does not fit into memory: try --recompute, --K 1 or fewer tokens.'
        )
    return results


def measured(base: Job, sizes: Sequence[int], rounds: int) -> dict:
    """Training with every number of tokens at once, and with the fastest one evaluation and the time by part."""
    training = tried(base, sizes, rounds)
    best = max(training, key=lambda r: r['examples_per_s'])
    base = replace(base, tokens_at_once=best['tokens_at_once'])
    evaluation, profile = run_in_rounds(
        [replace(base, contender='evaluation'), replace(base, profile=True)], rounds, say
    )
    return {
        'training': training,
        'best': best,
        'evaluation': evaluation,
        'profile': profile,
        'epoch_hours': EPOCH / best['examples_per_s'] / 3600,
    }


def table(result: dict) -> Table:
    machine = result['machine']
    title = f'{machine["gpu"] or machine["cpu"]}, {result["threads"]} threads, {result["dtype"]}, K {result["K"]}'
    drawn = Table(*COLUMNS, title=title)
    for llm, found in result['llms'].items():
        for r in found['training']:
            is_best = r is found['best']
            drawn.add_row(
                llm,
                str(r['tokens_at_once'] or 'default'),
                f'{r["examples_per_s"]:.3g}',
                f'{r["matmul_fraction"]:.0%} of {r["matmul_flops_per_s"] / 1e12:.3g} TFLOP/s',
                f'{r["peak_bytes"] / 1e9:.2f}',
                f'{found["epoch_hours"]:.3g}' if is_best else '',
                f'{found["evaluation"]["examples_per_s"]:.3g}' if is_best else '',
            )
    return drawn


def main() -> None:
    args = arguments()
    with naming('--out', args.out):
        check_writable(args.out / 'machine.json')
    episodes(args.data, 1)  # this and the next loop refuse what cannot be loaded before anything is measured
    for llm in args.llm:
        if llm not in CONFIGS:
            load_config(llm)
    if args.tokenizer:
        load_tokenizer(args.tokenizer, option='--tokenizer')
    args.dtype = args.dtype or faster_dtype(torch.device(args.device), args.threads)
    result = {**environment(args), 'K': args.K, 'llms': {}}
    for llm in args.llm:
        base = Job(
            'packed',
            llm,
            args.dtype,
            args.device,
            args.threads,
            args.K,
            args.L,
            args.batch,
            recompute=args.recompute,
            compile=args.compile,
            steps=args.steps,
            warm_up=WARM_UP[args.device],
            seed=args.seed,
            data=args.data,
            tokenizer=args.tokenizer,
        )
        result['llms'][llm] = measured(base, args.tokens_at_once, args.rounds)
        write(result, args.out, 'machine.json')  # in case the next LLM fails
    console.print(table(result))
    for llm, found in result['llms'].items():
        for what, key in ('part', 'shares'), ('kind of operation', 'operations'):
            shares = ', '.join(f'{name} {share:.1%}' for name, share in found['profile'][key].items())
            console.print(f'{llm}, time of a step by {what}: {shares}')
        if found['best']['device'] == 'cpu' and (share := found['best']['busy_threads'] / args.threads) < 0.9:
            console.print(
                f'{llm}: the steps had {share:.0%} of {args.threads} threads; other work may have run beside.'
            )
        console.print(f'{llm}: an epoch of ConvAI2 ({EPOCH:,} examples) takes {found["epoch_hours"]:.3g} hours.')


if __name__ == '__main__':
    main()
