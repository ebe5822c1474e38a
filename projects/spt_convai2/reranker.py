"""Does a small trained reranker choose better replies than consensus? Draw candidates, then fit and compare.

python projects/spt_convai2/reranker.py draw --model spt:smollm2-pt --data DATAPATH --out candidates.npz
python projects/spt_convai2/reranker.py fit candidates.npz
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from candidate_draws import agent_of, contexts_of, draw_all, principal, project, text_scores
from candidate_scorer import SCALARS, Drawn, fitted, read_drawn, scores_of, weight_of_consensus
from rich import box
from rich.console import Console
from rich.table import Table
from significance import p_values
from torch import Tensor

from spt_parlai.checkpoints.files import check_writable
from spt_parlai.dashboard.world_logs import Turn
from spt_parlai.errors import UsageError, naming
from spt_parlai.metrics.corpus import CorpusBleu, Distinct
from spt_parlai.metrics.reply import rouge, unigram_f1

app = typer.Typer(
    add_completion=False, help=__doc__.splitlines()[0], no_args_is_help=True, pretty_exceptions_enable=False
)
console = Console(soft_wrap=True)
WIDTH = 64  # of the MLP
COMPARED = ('linear', 'MLP, without consensus', 'MLP', 'MLP + consensus')  # rows that are tested against consensus
LOGGED_AS = ('unigram_f1', 'sacrebleu', 'rougeL', 'dist1', 'dist2')  # the columns, as `p_values` names them


@app.command()
def draw(
    model: Annotated[str, typer.Option(help='Model file, or a name such as spt:smollm2-pt.')],
    out: Annotated[Path, typer.Option(help='The .npz file to write.')],
    llm: Annotated[str | None, typer.Option(help='LLM (default: that of the model file).')] = None,
    data: Annotated[Path | None, typer.Option(help="ParlAI's datapath.")] = None,
    task: Annotated[str, typer.Option(help='The task.')] = 'convai2:self',
    train: Annotated[int, typer.Option(min=1, help='At least this many contexts of the train fold.')] = 3000,
    valid: Annotated[int, typer.Option(min=1, help='At least this many contexts of the valid fold.')] = 1000,
    candidates: Annotated[int, typer.Option(min=2, help='Replies drawn for each context.')] = 16,
    at_once: Annotated[int, typer.Option(min=1, help='Contexts at a time.')] = 128,
    dimensions: Annotated[int, typer.Option(min=1, help='Principal components of hidden states to keep.')] = 192,
    seed: Annotated[int, typer.Option(help='Draws dialogues and replies.')] = 1,
) -> None:
    """Draw candidate replies of both folds, and store their scores, their quality and hidden states of the LLM."""
    from joblib import Parallel, delayed

    with naming('--out', out):
        check_writable(out)
    started = time.perf_counter()
    agent = agent_of(model, llm, seed)
    folds = [contexts_of(agent, task, f, data, n, seed) for f, n in (('train:ordered', train), ('valid', valid))]
    contexts = [context for fold in folds for context in fold]
    is_valid = np.arange(len(contexts)) >= len(folds[0])
    console.print(f'{len(folds[0])} contexts of the train fold, {len(folds[1])} of the valid fold')
    found = draw_all(agent, contexts, 1 + candidates, at_once, console.print)
    console.print(f'{time.perf_counter() - started:.0f} s: all replies are drawn')
    by_text = Parallel(n_jobs=min(os.cpu_count() or 1, 1 + len(contexts) // 200), batch_size=64)(
        delayed(text_scores)(texts, c.gold, c.persona) for texts, c in zip(found.texts, contexts, strict=True)
    )
    by_text = np.stack(by_text)  # [N, C, 5]
    hidden, states = found.hidden.numpy(), found.context.numpy()
    axes = principal(hidden[~is_valid].reshape(-1, hidden.shape[-1]), dimensions)
    context_axes = principal(states[~is_valid], dimensions)
    told = {
        'replies': found.texts,
        **{name: [getattr(c, name) for c in contexts] for name in ('said', 'persona', 'gold')},
    }
    settings = {'model': model, 'llm': agent.opt['llm'], 'task': task, 'seed': seed, 'candidates': candidates}
    np.savez_compressed(
        out,
        valid=is_valid,
        dialogue=np.array([c.dialogue for c in contexts]),
        log_probs=found.log_probs.numpy(),
        alone=found.alone.numpy(),
        tokens=found.tokens.numpy().astype(np.int16),
        quality=by_text[..., :3],
        consensus=by_text[..., 3],
        persona=by_text[..., 4],
        hidden=project(hidden, *axes),
        context=project(states, *context_axes),
        texts=_json(told),
        settings=_json(settings),
    )
    console.print(f'{time.perf_counter() - started:.0f} s: wrote {out}, {out.stat().st_size / 1e6:.1f} MB')


def _json(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


# ---- fit ----------------------------------------------------------------------------------------------------------


def choices(drawn: Drawn, seeds: Sequence[int]) -> dict[str, Tensor]:
    """Row → the number of the candidate that it chooses, int64 [N], for the contexts of the valid fold."""
    valid = drawn.part(drawn.valid)
    rows = {'greedy': torch.zeros(len(valid.quality), dtype=torch.long)}
    rows['one sample'] = rows['greedy'] + 1
    rows |= {name: scores.argmax(1) for name, scores in valid.rules.items()}
    everything, without = range(len(SCALARS)), [i for i, name in enumerate(SCALARS) if name != 'consensus']
    for name, used, width in (
        ('linear, without consensus', without, 0),
        ('linear', everything, 0),
        ('MLP, without consensus', without, WIDTH),
        ('MLP', everything, WIDTH),
    ):
        models = fitted(drawn, seeds, used, width)
        scores = sum(scores_of(model, valid) for model, _ in models) / len(models)
        rows[name] = scores.argmax(1)
        console.print(f'{name}: {sum(p.numel() for p in models[0][0].parameters())} weights, {len(models)} seeds')
        if width == 0 and used == everything:
            weights = sum(model.linear.weight.detach()[0] for model, _ in models) / len(models)
            console.print('  ' + ', '.join(f'{n} {w:+.2f}' for n, w in zip(SCALARS, weights.tolist(), strict=True)))
    weight = weight_of_consensus(models)
    console.print(f'MLP + consensus: {weight:g} times the consensus')
    rows['MLP + consensus'] = (scores + weight * valid.rules['consensus']).argmax(1)
    rows['the best, in hindsight'] = valid.quality.argmax(1)
    return rows


def measured(drawn: Drawn, choice: Tensor) -> tuple[dict[str, float], list[Turn]]:
    """Metrics of the chosen replies of the valid fold, and the replies as a world log has them."""
    valid = drawn.part(drawn.valid)
    replies = [group[i] for group, i in zip(valid.replies, choice.tolist(), strict=True)]
    found = {
        'F1': 100 * np.mean([unigram_f1(r, (g,)) for r, g in zip(replies, valid.gold, strict=True)]),
        'BLEU': sum((CorpusBleu.of(r, (g,)) for r, g in zip(replies, valid.gold, strict=True)), None).value(),
        'ROUGE-L': 100 * np.mean([rouge(r, (g,))['rougeL'] for r, g in zip(replies, valid.gold, strict=True)]),
        'DIST-1': Distinct(replies, (1,)).value(),
        'DIST-2': Distinct(replies, (2,)).value(),
    }
    turns = zip(valid.dialogue.tolist(), valid.said, valid.persona, valid.gold, replies, strict=True)
    log = [Turn(d, 0, said, (persona,), gold, reply, None, None) for d, said, persona, gold, reply in turns]
    return {name: float(value) for name, value in found.items()}, log


@app.command()
def fit(
    file: Annotated[Path, typer.Argument(help='What `draw` wrote.')],
    seeds: Annotated[int, typer.Option(min=1, help='Rerankers, whose scores are added up.')] = 5,
) -> None:
    """Train rerankers on the train fold, and compare what they choose on the valid fold with what consensus chooses."""
    drawn = read_drawn(file)
    if drawn.valid.all() or not drawn.valid.any() or len(drawn.dialogue[~drawn.valid].unique()) < 2:
        raise UsageError(f'{file}: fitting needs two dialogues of the train fold and one of the valid fold; draw more.')
    rows = choices(drawn, range(1, seeds + 1))
    logs = {name: measured(drawn, choice) for name, choice in rows.items()}
    columns = list(logs['greedy'][0])
    table = Table('', *columns, box=box.MARKDOWN)
    for name, (metrics, log) in logs.items():
        p = p_values([log], [logs['consensus'][1]]) if name in COMPARED else {}
        marks = {c: p.get(n, 1.0) for c, n in zip(columns, LOGGED_AS, strict=True)}
        cells = (f'{v:.2f}' + (f' (p {marks[c]:.3f})' if name in COMPARED else '') for c, v in metrics.items())
        table.add_row(name, *cells)
    Console(width=200).print(table)


if __name__ == '__main__':
    app()
