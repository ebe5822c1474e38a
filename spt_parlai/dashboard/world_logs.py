"""The turns of an evaluation from its world log: the message, the gold reply, the agent's reply and its prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from spt_parlai.dialogue.messages import split_message, well_formed
from spt_parlai.errors import UsageError
from spt_parlai.metrics.reply import trim
from spt_parlai.text_files import read_lines


class Turn(NamedTuple):
    """One turn of an evaluation.

    number: 1 for the first of a dialogue; said: the message without the persona; label: the gold reply; reply: the
    agent's; prompt, scores: the selected prompt and all prompts' scores, None if the agent selects nothing; metrics: of
    this reply, None if the log does not keep them.
    """

    dialogue: int
    number: int
    said: str
    persona: tuple[str, ...]
    label: str
    reply: str
    prompt: int | None
    scores: tuple[float, ...] | None
    metrics: Mapping[str, float] | None = None


def read_turns(path: Path, trimmed: bool = True) -> list[Turn]:
    """The turns of a `--world-logs` file in ParlAI's conversations format.

    :param trimmed: whether replies are cut as for the metrics (`--trim-responses`).
    :raises UsageError: for a line that is no dialogue.
    """
    turns = []
    for d, line in enumerate(read_lines(path)):
        persona: tuple[str, ...] = ()
        try:
            dialogue = well_formed(json.loads(line)['dialog'])
        except (ValueError, LookupError, TypeError) as error:
            raise UsageError(f'{path}, line {d + 1} is no dialogue of a world log; repeat the evaluation.') from error
        for number, (message, act) in enumerate(dialogue, 1):
            told, said = split_message(message.get('text') or '')
            persona += tuple(told)
            scores, reply = act.get('prompt_scores'), act.get('text') or ''
            turns.append(
                Turn(
                    d,
                    number,
                    said,
                    persona,
                    (message.get('eval_labels') or [''])[0],
                    trim(reply) if trimmed else reply,
                    act.get('selected_prompt'),
                    None if scores is None else tuple(scores),
                    act.get('metrics'),
                )
            )
    return turns
