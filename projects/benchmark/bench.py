"""Training speed and memory: the naive pattern, PEFT's loop, ours per turn and ours on whole dialogues, each in turn in one run.

python projects/benchmark/bench.py [--quick] [--shape opt-125m] [--dtype float32] [--data PARLAI_DATAPATH] [--out runs/benchmark]
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from job import Job, in_turn
from report import claims, environment, plot, say, table, write
from shapes import CONFIGS

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
    parser.add_argument('--shape', choices=CONFIGS, default='opt-125m')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--K', type=int, default=4, help='prompts')
    parser.add_argument('--L', type=int, default=8, help='tokens per prompt')
    parser.add_argument('--rounds', type=int, default=2, help='how often each contender has its turn')
    parser.add_argument('--steps', type=int, default=1, help='timed steps a turn')
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--data', help="ParlAI's datapath with ConvAI2 in it; default: the sample task")
    parser.add_argument(
        '--tokenizer', default='demo', help='folder of an LLM (its config.json and tokenizer) whose ids the shape knows'
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--llm-compile', action='store_true', help='ours packed with --llm-compile too')
    parser.add_argument('--no-curves', action='store_true', help='the comparison and the profile alone')
    parser.add_argument('--quick', action='store_true', help='a tiny shape, seconds: does everything run?')
    parser.add_argument('--out', type=Path, default=Path('runs/benchmark'), help='folder of the JSON file and the plot')
    return parser.parse_args()


def comparison(base: Job, compiled: bool) -> list[Job]:
    """In the dtype that was asked for, and ours in bfloat16 too, which is one option (`--llm-dtype bfloat16`).

    The naive pattern's first step is timed: it takes minutes, beside which a warm-up saves nothing.
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
    """One dialogue a step, one property varied at a time; a job that lies on several curves is run once."""
    base = replace(base, contender='packed', batch=1)
    jobs = {name: [replace(base, **{name: value}) for value in values] for name, values in lengths.items()}
    wanted = list(dict.fromkeys(job for points in jobs.values() for job in points))
    measured = dict(zip(wanted, in_turn(wanted, 1, say), strict=True))
    return {name: [measured[job] for job in points] for name, points in jobs.items()}


def main() -> None:
    args = arguments()
    base = Job(
        'packed',
        args.shape,
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
        base, args.rounds = replace(base, shape='tiny', K=2, warm_up=0, steps=1, square=256), 1
    result = environment(args)
    result['comparison'] = in_turn(comparison(base, args.llm_compile), args.rounds, say)
    (result['profile'],) = in_turn([replace(base, profile=True)], 1, say)
    result['claims'] = claims(result['comparison'], result['profile'])
    result['curves'] = {}
    write(result, args.out)  # should the curves be stopped
    if not args.no_curves:
        result['curves'] = curves(base, QUICK_CURVES if args.quick else CURVES)
    table(result)
    write(result, args.out)
    plot(result, args.out)


if __name__ == '__main__':
    main()
