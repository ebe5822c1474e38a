"""Results as tables on the screen, a JSON file and a plot."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

console = Console(width=150)
NAMES = {
    'K': 'K, prompts',
    'batch': 'dialogues per step',
    'limit': 'longest context, tokens',
    'L': 'L, prompt length',
    'prompt_chunk': '--prompt-chunk',
    'tokens_at_once': '--tokens-at-once',
}


def say(line: str) -> None:
    """Print a line of progress, with the time, on stderr."""
    print(f'{time.strftime("%H:%M:%S")}  {line}', file=sys.stderr, flush=True)


def environment(args) -> dict:
    """The command, machine, versions and seed, without which a measurement cannot be judged."""
    from importlib.metadata import version

    cpu = next(
        (line.split(':')[1].strip() for line in _lines('/proc/cpuinfo') if line.startswith('model name')),
        platform.processor(),
    )
    return {
        'command': ' '.join(['python', *sys.argv]),
        'seed': args.seed,
        'dtype': args.dtype,
        'threads': args.threads,
        'machine': {
            'cpu': cpu,
            'cores': os.cpu_count(),
            'load_at_start': os.getloadavg(),
            'gpu': torch.cuda.get_device_name() if args.device == 'cuda' else None,
        },
        'versions': {
            'python': platform.python_version(),
            **{n: version(n) for n in ('torch', 'transformers', 'peft', 'sacrebleu')},
        },
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def claims(comparison: list[dict], profile: dict) -> dict[str, float]:
    """The ratios that the design aims at."""
    dtype = profile['dtype']
    by = {(r['contender'], r['K'] == 1): r for r in comparison if r['dtype'] == dtype and not r['compile']}
    half = {r['contender']: r for r in comparison if r['dtype'] == 'bfloat16' != dtype}
    compiled = [r for r in comparison if r['compile']]
    naive, packed, peft = by['naive', False], by['packed', False], by['PEFT', True]

    def speed(a: dict, b: dict) -> float:
        return a['examples_per_s'] / b['examples_per_s']

    return {
        'packed / naive, examples/s': speed(packed, naive),
        'per-turn / naive, examples/s': speed(by['per-turn', False], naive),
        **{f'{name} in bfloat16 / naive, examples/s': speed(r, naive) for name, r in half.items()},
        'packed / naive, peak memory': packed['peak_bytes'] / naive['peak_bytes'],
        **{
            f'{name} in bfloat16 / naive, peak memory': r['peak_bytes'] / naive['peak_bytes']
            for name, r in half.items()
        },
        'packed / together, examples/s': speed(packed, by['together', False]),
        'packed / together, peak memory': packed['peak_bytes'] / by['together', False]['peak_bytes'],
        **({'packed compiled / packed, examples/s': speed(compiled[0], packed)} if compiled else {}),
        'packed / naive, examples per step': packed['examples_per_step'] / naive['examples_per_step'],
        'packed / PEFT at K 1, examples/s': speed(by['packed', True], peft),
        'per-turn / PEFT at K 1, examples/s': speed(by['per-turn', True], peft),
        'packed, fraction of the matrix-product rate': packed['matmul_fraction'],
        **{f'{name} in bfloat16, fraction of its rate': r['matmul_fraction'] for name, r in half.items()},
        'packed, share of text similarity and data': profile['shares']['similarity'] + profile['shares']['data'],
    }


COLUMNS = (
    'contender',
    'dtype',
    'K',
    'L',
    'batch',
    'examples/step',
    's/step',
    'examples/s',
    'tokens/s',
    'padding',
    'peak, GB',
    'of matmul rate',
)


def row(r: dict) -> list[str]:
    """A result as text, one cell for each of `COLUMNS`."""
    return [
        r['contender'] + (', compiled' if r['compile'] else ''),
        r['dtype'],
        str(r['K']),
        str(r['L']),
        str(r['batch']),
        f'{r["examples_per_step"]:.0f}',
        f'{r["seconds_per_step"]:.3g}',
        f'{r["examples_per_s"]:.3g}',
        f'{r["tokens_per_s"]:.0f}',
        f'{r["padding"]:.0%}',
        f'{r["peak_bytes"] / 1e9:.2f}',
        f'{r["matmul_fraction"]:.0%}',
    ]


def show(title: str, results: list[dict], first: str | None = None) -> None:
    """Print a table of results. first: a property of the jobs that stands in the first column."""
    drawn = Table(*([NAMES[first]] if first else []), *COLUMNS, title=title)
    for r in results:
        drawn.add_row(*([str(r[first])] if first else []), *row(r))
    console.print(drawn)


def table(result: dict) -> None:
    """Print the comparison, the curves, the profile and the ratios."""
    first = result['comparison'][0]
    rate = result['profile']['matmul_flops_per_s'] / 1e9
    show(
        f'{first["llm"]}, {first["dtype"]}, {first["device"]}; the machine multiplies matrices at {rate:.0f} GFLOP/s',
        result['comparison'],
    )
    for name, points in result['curves'].items():
        show(f'packed, by {NAMES[name]}', points, name)
    profile = Table('part', 'share', 's', title='time of a packed step by part')
    for name, share in result['profile']['shares'].items():
        profile.add_row(name, f'{share:.1%}', f'{share * result["profile"]["seconds_per_step"]:.3f}')
    console.print(profile)
    for claim, value in result['claims'].items():
        console.print(f'{claim:46} {value:.3g}')


def write(result: dict, folder: Path, name: str = 'benchmark.json') -> None:
    """Write all results as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(result, indent=1))
    say(f'wrote {folder / name}')


def plot(result: dict, folder: Path) -> None:
    """Draw `benchmark.png` if matplotlib is installed."""
    if importlib.util.find_spec('matplotlib') is None:
        return say('no plot: matplotlib is not installed')
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    comparison, curves, shares = result['comparison'], result['curves'], result['profile']['shares']
    figure, axes = plt.subplots(2, 4, figsize=(16, 7), layout='constrained')
    axes = list(axes.flat)
    names = [f'{r["contender"]}, K {r["K"]}, {r["dtype"]}' for r in comparison]
    for axis, (key, scale, label) in zip(
        axes[:2], (('examples_per_s', 1, 'examples/s'), ('peak_bytes', 1e9, 'peak memory, GB')), strict=True
    ):
        axis.barh(names, [r[key] / scale for r in comparison])
        axis.set(xlabel=label, xscale='log' if scale == 1 else 'linear')
        axis.invert_yaxis()
    axes[2].barh(list(shares), [100 * share for share in shares.values()])
    axes[2].set(xlabel="% of a packed step's time")
    axes[2].invert_yaxis()
    for axis, (name, points) in zip(axes[3:], curves.items(), strict=False):
        axis.plot([p[name] for p in points], [p['examples_per_s'] for p in points], 'o-')
        axis.set(xlabel=NAMES[name], ylabel='examples/s')
        axis.set_ylim(bottom=0)
        other = axis.twinx()
        other.plot([p[name] for p in points], [p['peak_bytes'] / 1e9 for p in points], 's--', color='tab:orange')
        other.set_ylabel('peak memory, GB', color='tab:orange')
        other.set_ylim(bottom=0)
    for axis in axes[3 + len(curves) :]:
        axis.set_visible(False)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / 'benchmark.png', dpi=100)
    say(f'wrote {folder / "benchmark.png"}')
