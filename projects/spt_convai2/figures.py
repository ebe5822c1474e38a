"""The paper's figures as PNG files, drawn from world logs and training logs."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from spt_parlai.dashboard.world_logs import Turn
from spt_parlai.objective import SptObjective

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402  (the backend must be chosen first)

# Colours that can also be told apart in print.
PALETTE = ('#4269d0', '#efb118', '#ff725c', '#3ca951', '#a463f2', '#6cc5b0', '#9c6b4e', '#97bbf5')
STYLE = {
    'font.size': 11,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.titlesize': 12,
    'axes.titleweight': 'bold',
    'axes.titlelocation': 'left',
    'figure.facecolor': 'white',
    'savefig.facecolor': 'white',
    'legend.frameon': False,
    'axes.grid': True,
    'grid.alpha': 0.25,
    'font.family': 'DejaVu Sans',
}
EMOJI = '[\U0001f300-\U0001faff☀-➿]|[:;=]-?[)(DPp]'
LONGEST = 12  # turns shown; hardly any dialogue of these tasks has more


def colour(prompt: int) -> str:
    """The colour of a prompt in every figure."""
    return PALETTE[prompt % len(PALETTE)]


def save(figure, path: Path) -> Path:
    """Write a figure as PNG and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches='tight')
    plt.close(figure)
    return path


def panels(count: int, width: float = 5.2, height: float = 3.4, most: int = 3):
    """(figure, `count` axes) with at most `most` panels in a row; width and height of a panel are in inches."""
    columns = min(count, most)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), layout='constrained', squeeze=False
    )
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def usage_counts(turns: Sequence[Turn], K: int) -> np.ndarray:
    """int [K, turns]: how often each prompt was selected at each turn of a dialogue."""
    counts = np.zeros((K, min(max(t.number for t in turns), LONGEST)), dtype=int)
    for turn in turns:
        if turn.number <= LONGEST:
            counts[turn.prompt, turn.number - 1] += 1
    return counts


def usage_by_turn(runs: dict[str, Sequence[Turn]], path: Path) -> Path:
    """Figure 2: how often each prompt is selected, by turn of the dialogue; one panel per run."""
    with plt.rc_context(STYLE):
        figure, axes = panels(len(runs))
        for axis, (label, turns) in zip(axes, runs.items(), strict=True):
            K = prompts_of(turns)
            for prompt, counts in enumerate(usage_counts(turns, K)):
                axis.plot(
                    range(1, len(counts) + 1),
                    counts,
                    'o-',
                    color=colour(prompt),
                    label=f'prompt {prompt}',
                    lw=2,
                    ms=5,
                )
            axis.set(title=label, xlabel='turn of the dialogue', ylabel='times selected', ylim=(0, None))
            for numbers in (axis.xaxis, axis.yaxis):
                numbers.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        axes[0].legend(fontsize=9)
        return save(figure, path)


def prompts_of(turns: Sequence[Turn]) -> int:
    """K, the number of prompts of the agent that wrote a log."""
    return len(turns[0].scores)


def pattern_rates(turns: Sequence[Turn], pattern: str, K: int) -> tuple[np.ndarray, np.ndarray]:
    """(float [K, turns]: share of replies with a match, NaN where a prompt was not used; int [K, turns]: replies)."""
    counts = usage_counts(turns, K)
    found = Counter((t.prompt, t.number - 1) for t in turns if t.number <= LONGEST and re.search(pattern, t.reply))
    matches = np.array([[found[k, n] for n in range(counts.shape[1])] for k in range(K)], dtype=float)
    return np.divide(matches, counts, out=np.full(counts.shape, np.nan), where=counts > 0), counts


def pattern_by_prompt(turns: Sequence[Turn], patterns: dict[str, str], path: Path) -> Path:
    """Figure 3: the share of each prompt's replies that match a pattern, by turn; one panel per pattern.

    The paper's pattern is an emoji.
    """
    with plt.rc_context({**STYLE, 'axes.grid': False}):
        K = prompts_of(turns)
        figure, axes = panels(len(patterns), height=0.55 * K + 1.4, width=6.2, most=2)
        for axis, (name, pattern) in zip(axes, patterns.items(), strict=True):
            rates, counts = pattern_rates(turns, pattern, K)
            most = max(np.nanmax(100 * rates), 1)
            image = axis.imshow(np.ma.masked_invalid(100 * rates), aspect='auto', cmap='viridis', vmin=0, vmax=most)
            axis.set_facecolor('#e8e8e8')
            for (k, n), rate in np.ndenumerate(rates):
                if counts[k, n]:
                    shown = 'white' if 100 * rate < most * 0.6 else 'black'
                    axis.text(n, k, f'{100 * rate:.0f}', ha='center', va='center', fontsize=9, color=shown)
            axis.set(
                title=f'replies with {name}, %',
                xlabel='turn of the dialogue',
                xticks=range(counts.shape[1]),
                yticks=range(K),
            )
            axis.set_xticklabels([str(n + 1) for n in range(counts.shape[1])])
            axis.set_yticklabels([f'prompt {k} (n = {counts[k].sum()})' for k in range(K)])
            figure.colorbar(image, ax=axis, pad=0.02)
        return save(figure, path)


def training_curves(runs: dict[str, Sequence[dict[str, Any]]], path: Path) -> Path:
    """The training log by step: perplexity under the selected prompt, SPT's losses and the entropy of prompt use."""
    losses = {name: f'{name} loss' for name in SptObjective.losses()}
    shown = {'ppl': 'training perplexity', **losses, 'prompt_usage_entropy': 'usage entropy'}
    shown = {k: name for k, name in shown.items() if any(k in report for curve in runs.values() for report in curve)}
    with plt.rc_context(STYLE):
        figure, axes = panels(len(shown), most=2, width=6.2)
        for axis, (key, name) in zip(axes, shown.items(), strict=True):
            for n, (label, curve) in enumerate(runs.items()):
                points = [(r['train_steps'], r[key]) for r in curve if r.get(key) is not None]
                if points and (key == 'ppl' or any('prompt_usage_1' in r and r[key] for r in curve)):
                    axis.plot(*zip(*points, strict=True), '.-', label=label, color=colour(n), lw=1.8)
            axis.set(title=name, xlabel='step')
            axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
            if key == 'ppl':
                axis.set_yscale('log')
                axis.yaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
                axis.yaxis.set_minor_formatter(matplotlib.ticker.ScalarFormatter())
                axis.tick_params(axis='y', which='minor', labelsize=8)
        figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=3, fontsize=10)
        return save(figure, path)


def projected_scores(turns: Sequence[Turn]) -> tuple[np.ndarray, np.ndarray]:
    """(float [N, 2]: logarithms of the retriever's scores along two principal components; float [2]: variance of each).

    Without the logarithm only the largest differences would be visible, because the scores come from a softplus.
    """
    from sklearn.decomposition import PCA

    pca = PCA(n_components=2, random_state=0)
    points = pca.fit_transform(np.log(np.array([t.scores for t in turns]).clip(1e-12)))
    return points, np.nan_to_num(pca.explained_variance_ratio_)


def score_projection(runs: dict[str, Sequence[Turn]], path: Path) -> Path:
    """Each context as a point at two principal components of its scores, in the colour of the selected prompt."""
    with plt.rc_context(STYLE):
        figure, axes = panels(len(runs))
        for axis, (label, turns) in zip(axes, runs.items(), strict=True):
            points, explained = projected_scores(turns)
            for prompt in range(prompts_of(turns)):
                mine = points[[t.prompt == prompt for t in turns]]
                axis.scatter(
                    *mine.T,
                    s=14,
                    alpha=0.6,
                    color=colour(prompt),
                    label=f'prompt {prompt} ({len(mine)})',
                    linewidths=0,
                )
            axis.set(
                title=label,
                xlabel=f'component 1 ({explained[0]:.0%} of variance)',
                ylabel=f'component 2 ({explained[1]:.0%})',
            )
            axis.legend(fontsize=9, markerscale=1.6)
            axis.ticklabel_format(style='sci', scilimits=(-2, 3))
            axis.locator_params(nbins=5)
        return save(figure, path)


# ---- figure 4 --------------------------------------------------------------------------------------------


class Exchange(dict):
    """One turn of two models in the same dialogue: said, label, left, right."""


def paired_dialogues(left: Sequence[Turn], right: Sequence[Turn], count: int) -> list[dict[str, Any]]:
    """The first `count` dialogues that are in both logs, with both models' replies to the same contexts."""
    there = {(t.dialogue, t.number): t for t in right}
    dialogues: dict[int, dict[str, Any]] = {}
    for turn in left:
        other = there.get((turn.dialogue, turn.number))
        if other is None or (other.said, other.label) != (turn.said, turn.label):
            continue
        dialogue = dialogues.setdefault(turn.dialogue, {'persona': list(turn.persona), 'turns': []})
        dialogue['turns'].append(
            Exchange(
                said=turn.said,
                label=turn.label,
                left=turn.reply,
                right=other.reply,
                left_prompt=turn.prompt,
                right_prompt=other.prompt,
            )
        )
    return list(dialogues.values())[:count]


def conversations(dialogues: Sequence[dict[str, Any]], names: tuple[str, str], path: Path, turns: int = 4) -> Path:
    """Figure 4: what was said, and two models' replies to it; one panel per dialogue."""

    def lines_of(text: str, width: int = 52) -> list[str]:
        return textwrap.wrap(text, width)[:5] or ['(nothing)']

    def persona_of(dialogue: dict[str, Any]) -> list[str]:
        return textwrap.wrap('persona: ' + ' '.join(dialogue['persona']), 105)[:4] if dialogue['persona'] else []

    def height_of(turn: Exchange) -> float:
        return len(lines_of(turn['said'])) + max(len(lines_of(turn['left'])), len(lines_of(turn['right']))) + 2.3

    heights = [3.2 + len(persona_of(d)) + sum(map(height_of, d['turns'][:turns])) for d in dialogues]
    tints = (0, names[0], PALETTE[0], '#e8eefc'), (51, names[1], PALETTE[2], '#ffe9e4')
    with plt.rc_context({**STYLE, 'axes.grid': False}):
        figure, axes = plt.subplots(
            len(dialogues),
            1,
            figsize=(10, 0.21 * sum(heights)),
            height_ratios=heights,
            layout='constrained',
            squeeze=False,
        )
        for axis, dialogue, height in zip(axes.flat, dialogues, heights, strict=True):
            axis.set(xlim=(0, 100), ylim=(height, 0))
            axis.axis('off')
            axis.text(0, 0.3, '\n'.join(persona_of(dialogue)), fontsize=10, style='italic', color='#555', va='top')
            y = 0.8 + len(persona_of(dialogue))
            for column, name, tone, _ in tints:
                axis.text(column, y, name, fontsize=11, weight='bold', va='top', color=tone)
            y += 1.6
            for turn in dialogue['turns'][:turns]:
                said = lines_of(turn['said'] or '(opens the dialogue)')
                axis.text(50, y, '\n'.join(said), fontsize=10.5, va='top', ha='center', color='#333')
                for (column, *_, tint), side in zip(tints, ('left', 'right'), strict=True):
                    axis.text(
                        column + 0.8,
                        y + len(said) + 0.6,
                        '\n'.join(lines_of(turn[side])),
                        fontsize=10.5,
                        va='top',
                        color='#111',
                        bbox={'boxstyle': 'round,pad=0.35', 'facecolor': tint, 'edgecolor': 'none'},
                    )
                y += height_of(turn)
        return save(figure, path)
