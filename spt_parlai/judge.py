"""`spt judge`: an LLM behind an OpenAI-compatible endpoint compares the replies of two world logs, pair by pair.

Every pair is shown in both orders, because judges prefer a place. A reply wins if it is chosen in both; everything else
is a tie. How often both orders agree says how far the judge can be trusted.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import parlai  # noqa: F401  this installs the hooks, before the imports below import more of ParlAI
from tqdm import tqdm

from spt_parlai.agents.chat_endpoint import ChatEndpoint
from spt_parlai.checkpoints.files import check_writable
from spt_parlai.dashboard.world_logs import Turn, read_turns
from spt_parlai.dialogue.thoughts import without_thoughts
from spt_parlai.errors import UsageError, naming

INSTRUCTION = (
    'You compare two replies in a chat. The better reply fits what was said before, agrees with the facts about its '
    'speaker, says something of its own, and sounds like a person. A longer reply is not better for its length.'
)
QUESTION = 'Which reply is better? Answer with 1, 2 or tie, and with nothing else.'
_CHOICE = re.compile(r'\b(1|2|tie)\b')
RESAMPLES = 9999
Chat = tuple[tuple[bool, str], ...]


class Pair(NamedTuple):
    """Two replies to one message. dialogue: a number; turns: the chat so far, (own, text), the message last."""

    dialogue: int
    persona: tuple[str, ...]
    turns: Chat
    replies: tuple[str, str]


class Judgement(NamedTuple):
    """What the judge said of a pair: 'A', 'B', 'tie' or None (unreadable) in each order, A first in the first one."""

    pair: Pair
    choices: tuple[str | None, str | None]

    @property
    def winner(self) -> str:
        """The log whose reply is chosen in both orders, or 'tie'."""
        return self.choices[0] if self.choices[0] in ('A', 'B') and self.choices[0] == self.choices[1] else 'tie'


# ---- pairs ---------------------------------------------------------------------------------------------------


def read_pairs(first: Path, second: Path, trimmed: bool) -> list[Pair]:
    """The messages that both logs have, in the order of the first, with the reply of each.

    :raises UsageError: if a log cannot be read, or they have no message in common.
    """
    logs = []
    for path in (first, second):
        with naming(str(path)):
            logs.append([*_messages(read_turns(path, trimmed))])
    theirs: dict[Any, list[str]] = defaultdict(list)
    for _, key, reply in logs[1]:
        theirs[key].append(reply)
    pairs = []
    for dialogue, (persona, chat), reply in logs[0]:
        if found := theirs[persona, chat]:  # a message that stands in a log twice has a reply for each
            pairs.append(Pair(dialogue, persona, chat, (reply, found.pop(0))))
    if not pairs:
        raise UsageError(f'{first} and {second} have no message in common; evaluate both models on the same task.')
    return pairs


def _messages(turns: Sequence[Turn]) -> Iterator[tuple[int, tuple[tuple[str, ...], Chat], str]]:
    """(dialogue, (persona, chat so far), reply) of every turn; the chat holds the gold replies, as in evaluation."""
    for dialogue, group in groupby(turns, key=lambda turn: turn.dialogue):
        chat: Chat = ()
        for turn in group:
            chat += ((False, turn.said),) if turn.said else ()
            yield dialogue, (turn.persona, chat), turn.reply
            chat += ((True, turn.label),)


def draw(pairs: Sequence[Pair], number: int, seed: int) -> list[Pair]:
    """As many pairs with different replies, from as many dialogues as possible; all of them if `number` is 0."""
    drawn = [pair for pair in pairs if pair.replies[0].split() != pair.replies[1].split()]
    random.Random(seed).shuffle(drawn)
    nth: Counter[int] = Counter()
    order = []
    for pair in drawn:
        order.append(nth[pair.dialogue])
        nth[pair.dialogue] += 1
    by_round = sorted(range(len(drawn)), key=lambda i: order[i])  # the first pair of every dialogue, then the second …
    return [drawn[i] for i in by_round[: number or None]]


# ---- questions and answers -----------------------------------------------------------------------------------


def question(pair: Pair, swapped: bool, instruction: str = INSTRUCTION) -> list[dict[str, str]]:
    """The messages that ask for one order of a pair."""
    one, two = pair.replies[::-1] if swapped else pair.replies
    parts = []
    if pair.persona:
        parts.append('Facts about the speaker who replies:\n' + '\n'.join(f'- {fact}' for fact in pair.persona))
    chat = '\n'.join(f'{"Speaker" if own else "Other"}: {text}' for own, text in pair.turns)
    parts.append(f'The chat so far:\n{chat}' if chat else 'The speaker begins the chat.')
    parts += [f"The speaker's reply 1: {one or '(nothing)'}\nThe speaker's reply 2: {two or '(nothing)'}", QUESTION]
    return [{'role': 'system', 'content': instruction}, {'role': 'user', 'content': '\n\n'.join(parts)}]


def choice(answer: str, swapped: bool) -> str | None:
    """'A', 'B' or 'tie' from the answer 1, 2 or tie. Of a longer text the last line counts; None if it is not clear."""
    text = without_thoughts(answer).strip().lower()
    found = set(_CHOICE.findall(text))
    if len(found) > 1:
        found = set(_CHOICE.findall(text.splitlines()[-1]))
    if len(found) != 1:
        return None
    said = found.pop()
    return 'tie' if said == 'tie' else 'AB'[(said == '2') != swapped]


def judge(pairs: Sequence[Pair], endpoint: ChatEndpoint, instruction: str = INSTRUCTION) -> Iterator[Judgement]:
    """Ask for both orders of every pair, several requests at a time."""
    at_once = endpoint.concurrency
    with tqdm(total=len(pairs), desc='judged', disable=None) as bar:  # None: only on a terminal
        for start in range(0, len(pairs), at_once):
            part = pairs[start : start + at_once]
            orders = (False, True)
            answers = endpoint.replies([question(pair, swapped, instruction) for swapped in orders for pair in part])
            for pair, one, two in zip(part, answers[: len(part)], answers[len(part) :], strict=True):
                yield Judgement(pair, (choice(one, False), choice(two, True)))
            bar.update(len(part))


# ---- summary -------------------------------------------------------------------------------------------------


def summarize(judgements: Sequence[Judgement]) -> dict[str, float]:
    """Counts and shares of judgements; at least one.

    `A`, `B`, `tie`: pairs; `share of A`: wins and half of the ties; `p`: two-sided, by exchanging A and B in whole
    dialogues (scipy's permutation test); `agreement`, `kappa`: of both orders, where both can be read, kappa being
    Cohen's; `first place`: how often the reply that stands first is chosen, of all choices of one reply; `unreadable`:
    answers.
    """
    winners = Counter(judgement.winner for judgement in judgements)
    readable = [(one, two) for _, (one, two) in judgements if one and two]
    chosen = [(at, who) for _, both in judgements for at, who in enumerate(both) if who in ('A', 'B')]
    return {
        **{who: winners[who] for who in ('A', 'B', 'tie')},
        'share of A': (winners['A'] + winners['tie'] / 2) / len(judgements),
        'p': _p_value(judgements),
        'agreement': sum(one == two for one, two in readable) / max(len(readable), 1),
        'kappa': _kappa(readable),
        'first place': sum(who == 'AB'[at] for at, who in chosen) / max(len(chosen), 1),
        'unreadable': sum(who is None for _, both in judgements for who in both),
    }


def _p_value(judgements: Iterable[Judgement]) -> float:
    import numpy as np
    from scipy.stats import permutation_test

    wins: Counter[int] = Counter()
    for judgement in judgements:
        wins[judgement.pair.dialogue] += {'A': 1, 'B': -1, 'tie': 0}[judgement.winner]
    values = np.array(list(wins.values()))
    if len(values) < 2 or not values.any():
        return 1.0
    result = permutation_test(
        (values,), np.sum, permutation_type='samples', n_resamples=RESAMPLES, vectorized=True, rng=0
    )
    return float(result.pvalue)


def _kappa(answers: Sequence[tuple[str, str]]) -> float:
    """Cohen's kappa: agreement beyond chance. 1 where every answer is the same."""
    n = len(answers)
    first, second = (Counter(side) for side in zip(*answers, strict=True)) if answers else (Counter(), Counter())
    by_chance = sum(first[who] * second[who] for who in first) / max(n, 1) ** 2
    agreed = sum(one == two for one, two in answers) / max(n, 1)
    return 1.0 if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)


# ---- the command ---------------------------------------------------------------------------------------------


def run(
    first: Path,
    second: Path,
    endpoint: ChatEndpoint,
    number: int,
    seed: int,
    trimmed: bool,
    out: Path | None,
    instruction: str = INSTRUCTION,
) -> dict[str, float]:
    """Judge two logs and print the result; `out` gets a JSON line for every pair as soon as it is judged.

    :raises UsageError: for logs that cannot be compared, a file that cannot be written, or what the endpoint refuses.
    """
    pairs = read_pairs(first, second, trimmed)
    drawn = draw(pairs, number, seed)
    same = sum(one.split() == two.split() for one, two in (pair.replies for pair in pairs))
    print(f'A: {first}\nB: {second}')
    print(f'{len(pairs)} messages in common, {same} with the same reply; {len(drawn)} pairs, each in both orders.')
    if not drawn:
        raise UsageError(f'{first} and {second} have the same replies; there is nothing to judge.')
    if out is not None:
        with naming('--out', out):
            check_writable(out)
        out.parent.mkdir(parents=True, exist_ok=True)
    judgements = []
    for judgement in judge(drawn, endpoint, instruction):
        judgements.append(judgement)
        if out is not None:
            with out.open('w' if len(judgements) == 1 else 'a', encoding='utf-8') as file:
                file.write(json.dumps(_logged(judgement), ensure_ascii=False) + '\n')
    result = summarize(judgements)
    if result['unreadable'] == 2 * len(judgements):
        raise UsageError(
            f'--model {endpoint.parameters["model"]}: none of its answers contains 1, 2 or tie; raise --max-new-tokens '
            'or take another model.'
        )
    print(shown(result, len(judgements)))
    return result


def _logged(judgement: Judgement) -> dict[str, Any]:
    pair = judgement.pair
    return {
        'persona': pair.persona,
        'chat': [{'own': own, 'text': text} for own, text in pair.turns],
        'A': pair.replies[0],
        'B': pair.replies[1],
        'A first': judgement.choices[0],
        'B first': judgement.choices[1],
        'winner': judgement.winner,
    }


def shown(result: dict[str, float], pairs: int) -> str:
    """The summary as lines of text."""
    wins = ', '.join(f'{who} {result[who]:.0f}' for who in ('A', 'B', 'tie'))
    unreadable = (
        f'; {result["unreadable"]:.0f} of {2 * pairs} answers could not be read' if result['unreadable'] else ''
    )
    return (
        f'{wins} of {pairs}; A has {100 * result["share of A"]:.1f}% with half of the ties, p = {result["p"]:.3g}\n'
        f'Both orders agree in {100 * result["agreement"]:.0f}% (κ {result["kappa"]:.2f}); '
        f'the reply in the first place is chosen in {100 * result["first place"]:.0f}%{unreadable}'
    )
