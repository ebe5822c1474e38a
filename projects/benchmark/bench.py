"""Compare training speed and memory: the naive pattern, PEFT's loop, and this package per turn and on whole dialogues.

    python projects/benchmark/bench.py [--quick] [--llm opt-125m] [--dtype float32] [--data DATAPATH] [--out FOLDER]

All contenders run one after the other on the same machine, in rounds.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import sampling
import torch
from dialogues import episodes
from job import Job, run_in_rounds
from report import claims, environment, plot, say, table, write
from shapes import LLM_HELP, TOKENIZER_HELP

from spt_parlai.checkpoints.files import check_writable
from spt_parlai.errors import naming
from spt_parlai.hub import load_tokenizer

NAIVE_BATCH, TURNS, DIALOGUES = 2, 8, 4  # DIALOGUES is the agent's default
CURVES = {
    'K': (1, 2, 4, 8),
    'batch': (1, 2, 4),
    'limit': (64, 128, 256, 512),
    'L': (1, 8, 32, 100),
    'prompt_chunk': (1, 2, 4),
}
QUICK_CURVES = {'K': (1, 2)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--llm', default='opt-125m', help=LLM_HELP)
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--K', type=int, default=4, help='prompts')
    parser.add_argument('--L', type=int, default=8, help='tokens per prompt')
    parser.add_argument('--rounds', type=int, default=2, help='how often each contender runs')
    parser.add_argument('--steps', type=int, default=1, help='timed steps in each run of a contender')
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--data', help="ParlAI's datapath with ConvAI2 in it; default: the sample task")
    parser.add_argument('--tokenizer', help=TOKENIZER_HELP)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--llm-compile', action='store_true', help='also measure whole dialogues with --llm-compile')
    parser.add_argument('--no-curves', action='store_true', help='only the comparison and the profile')
    parser.add_argument(
        '--quick', action='store_true', help='a tiny shape for a few seconds, to check that everything runs'
    )
    parser.add_argument('--out', type=Path, default=Path('runs/benchmark'), help='folder of the JSON file and the plot')
    return parser.parse_args()


def comparison(base: Job, compiled: bool) -> list[Job]:
    """Every contender in the chosen dtype, and this package also in bfloat16 (its option `--llm-dtype bfloat16`).

    The naive pattern has no warm-up step: its steps take minutes, so that a warm-up would change nothing.
    """
    return list(
        dict.fromkeys(
            [
                replace(base, contender='naive', batch=NAIVE_BATCH, warm_up=0, steps=1),
                replace(base, contender='per-turn', batch=TURNS),
                replace(base, contender='packed', batch=DIALOGUES),
                replace(base, contender='together', batch=DIALOGUES),
                replace(base, contender='per-turn', batch=TURNS, dtype='bfloat16'),
                replace(base, contender='packed', batch=DIALOGUES, dtype='bfloat16'),
                *([replace(base, contender='packed', batch=DIALOGUES, compile=True, warm_up=2)] if compiled else []),
                replace(base, contender='PEFT', K=1, batch=TURNS),
                replace(base, contender='per-turn', K=1, batch=TURNS),
                replace(base, contender='packed', K=1, batch=DIALOGUES),
            ]
        )
    )


def curves(base: Job, lengths: dict) -> dict[str, list[dict]]:
    """One dialogue per step, one property varied at a time. A job that lies on several curves runs once."""
    base = replace(base, contender='packed', batch=1)
    jobs = {name: [replace(base, **{name: value}) for value in values] for name, values in lengths.items()}
    wanted = list(dict.fromkeys(job for points in jobs.values() for job in points))
    measured = dict(zip(wanted, run_in_rounds(wanted, 1, say), strict=True))
    return {name: [measured[job] for job in points] for name, points in jobs.items()}


def main() -> None:
    args = arguments()
    with naming('--out', args.out):
        check_writable(args.out / 'benchmark.json')
    episodes(args.data, 1)  # refuses a folder without data before anything is measured
    if args.tokenizer:
        load_tokenizer(args.tokenizer, option='--tokenizer')
    base = Job(
        'packed',
        args.llm,
        args.dtype,
        args.device,
        args.threads,
        args.K,
        args.L,
        DIALOGUES,
        steps=args.steps,
        seed=args.seed,
        data=args.data,
        tokenizer=args.tokenizer,
    )
    if args.quick:
        base, args.rounds = replace(base, llm='tiny', K=2, warm_up=0, steps=1, square=256), 1
    result = environment(args)
    result['comparison'] = run_in_rounds(comparison(base, args.llm_compile), args.rounds, say)
    (result['profile'],) = run_in_rounds([replace(base, profile=True)], 1, say)
    result['claims'] = claims(result['comparison'], result['profile'])
    result['curves'] = {}
    write(result, args.out)  # in case the curves are interrupted
    if not args.no_curves:
        result['curves'] = curves(base, QUICK_CURVES if args.quick else CURVES)
    torch.set_num_threads(args.threads)
    result['sampling'] = sampling.compare(['tiny'], [1, 2], 4, 16, 4, 1) if args.quick else sampling.compare()
    table(result)
    sampling.show(result['sampling'])
    write(result, args.out)
    plot(result, args.out)


if __name__ == '__main__':
    main()
