"""Latency of a server with many sessions at once: requests decoded together, compared with one at a time.

python projects/benchmark/serving.py MODEL_FILE
"""

from __future__ import annotations

import statistics
import threading
import time
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from spt_parlai.agents.persona import sample_personas
from spt_parlai.dialogue.messages import Turn
from spt_parlai.server.engine import Engine, Finished, Piece, ReplyRequest
from spt_parlai.server.models import open_agent

MESSAGES = ('hello ! how are you today ?', 'what do you do for a living ?', 'do you have any hobbies or pets ?')


def session(engine: Engine, number: int, turns: int, times: list[tuple[float, float]]) -> None:
    """Talk to the model; adds (seconds to the first text, seconds to the last) of every reply to `times`."""
    personas = sample_personas()
    said: list[Turn] = []
    for turn in range(turns):
        said.append(Turn(MESSAGES[(number + turn) % len(MESSAGES)], own=False))
        persona = personas[number % len(personas)]
        request = ReplyRequest(persona, tuple(said), max_tokens=engine.usual_tokens, seconds=600)
        start, first, text = time.perf_counter(), 0.0, ''
        for event in engine.events(request):
            if isinstance(event, Piece):
                first = first or time.perf_counter() - start
                text += event.text
            elif isinstance(event, Finished):
                end = time.perf_counter() - start
                times.append((first or end, end))
        if text:
            said.append(Turn(text, own=True))


def measure(engine: Engine, sessions: int, turns: int) -> tuple[list[tuple[float, float]], float]:
    """(the times of all replies, seconds of the whole) of sessions that begin at once."""
    times: list[tuple[float, float]] = []
    threads = [threading.Thread(target=session, args=(engine, i, turns, times)) for i in range(sessions)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, time.perf_counter() - start


def main(
    model_file: Annotated[str, typer.Argument(help='A model file of this package, or the name of one inside it.')],
    sessions: Annotated[int, typer.Option(min=2, help='Sessions at once.')] = 32,
    turns: Annotated[int, typer.Option(min=1, help='Messages of each session.')] = 2,
    rounds: Annotated[int, typer.Option(min=1, help='How often each way is measured, in turn.')] = 2,
) -> None:
    """Compare the two ways in one process, with the same model and the same sessions."""
    agent = open_agent(model_file)
    engine = Engine(agent)
    ways = {'one at a time': 1, 'together': engine.most_rows}
    found: dict[str, list[tuple[list[tuple[float, float]], float]]] = {name: [] for name in ways}
    measure(engine, 2, 1)  # warm up
    for _ in range(rounds):
        for name, most_rows in ways.items():
            engine.most_rows = most_rows
            found[name].append(measure(engine, sessions, turns))
    engine.close()
    table = Table('', 'replies', 'lost', 'first text p50, s', 'p95, s', 'whole reply p50, s', 'p95, s', 'replies/s')
    p95 = {}
    for name, runs in found.items():
        times = [pair for pairs, _ in runs for pair in pairs]
        first, whole = ([pair[i] for pair in times] for i in (0, 1))
        p95[name] = percentile(whole, 95)
        rate = len(times) / sum(seconds for _, seconds in runs)
        figures = (statistics.median(first), percentile(first, 95), statistics.median(whole), p95[name], rate)
        lost = rounds * sessions * turns - len(times)
        table.add_row(name, str(len(times)), str(lost), *(f'{figure:.2f}' for figure in figures))
    console = Console(width=110)
    console.print(table)
    console.print(
        f'{sessions} sessions of {turns} messages, {torch.get_num_threads()} threads: the p95 of a whole reply is '
        f'{p95["one at a time"] / p95["together"]:.1f} times smaller together.'
    )


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method='inclusive')[percent - 1]


if __name__ == '__main__':
    typer.run(main)
