"""The demo LM's pretraining text: dialogue files → rendered documents → one stream of token ids.

A corpus folder holds `*.txt` files, either with one dialogue per line, whose utterances are joined by ` __eou__ `, or
in ParlAI's numbered persona format (`1 your persona: …`). Every dialogue becomes one document in one of two renderings,
so that the LM knows both bare lines and labelled turns:

* lines:    an optional `persona: …` line, then one utterance per line;
* labelled: `given persona: … ; context: Q: … R: …`, which always ends after an `R:` turn.

The last dialogues of every file, a share of `HELD_OUT`, are kept for the held-out loss.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from spt_parlai.errors import naming
from spt_parlai.tasks.convai2_files import check_dialogues
from spt_parlai.text_files import read_lines

HELD_OUT = 0.01
SILENCE = '__SILENCE__'


@dataclass
class Dialogue:
    """One dialogue: the second speaker's persona sentences, if any, and the utterances in order."""

    persona: list[str] = field(default_factory=list)
    utterances: list[str] = field(default_factory=list)


def read_dialogues(path: Path) -> list[Dialogue]:
    """The dialogues of one corpus file in either format. A file without dialogues ends the program."""
    with naming(str(path)):
        lines = read_lines(path)
    parlai_format = bool(lines) and lines[0].startswith('1 ')
    if parlai_format:
        check_dialogues(path)
    dialogues = _read_parlai(lines) if parlai_format else [Dialogue([], _clean(x.split(' __eou__ '))) for x in lines]
    dialogues = [d for d in dialogues if len(d.utterances) > 1]
    if not dialogues:
        raise SystemExit(f'{path} holds no dialogue (expected: one per line, utterances joined by " __eou__ ").')
    return dialogues


def _clean(utterances: list[str]) -> list[str]:
    return [' '.join(u.split()) for u in utterances if u.strip()]


def _read_parlai(lines: list[str]) -> list[Dialogue]:
    dialogues: list[Dialogue] = []
    for line in lines:
        number, _, text = line.partition(' ')
        if number == '1':
            dialogues.append(Dialogue())
        if text.startswith('your persona: '):
            dialogues[-1].persona.append(text[len('your persona: ') :].strip())
        else:
            turns = _clean(text.split('\t')[:2])
            dialogues[-1].utterances += [u for u in turns if u != SILENCE]
    return dialogues


def render(dialogue: Dialogue, rng: random.Random) -> str:
    """The text of one document. `rng` draws the rendering, and where a labelled one ends."""
    if rng.random() < 0.5:
        head = [f'persona: {" ".join(dialogue.persona)}'] if dialogue.persona else []
        return '\n'.join(head + dialogue.utterances)
    n = len(dialogue.utterances)
    end = max(2, n - rng.choice((0, 0, 1, 2)))
    first_is_reply = rng.random() < 0.3
    turns, reply = [], first_is_reply
    for utterance in dialogue.utterances[:end]:
        turns.append(f'{"R:" if reply else "Q:"} {utterance}')
        reply = not reply
    if reply and len(turns) > 1:  # the last turn was a Q:, but a document ends with a reply
        turns.pop()
    head = f'given persona: {" ".join(dialogue.persona)}; context:' if dialogue.persona else 'context:'
    return ' '.join([head, *turns])


def load_corpus(folder: Path) -> tuple[list[Dialogue], list[Dialogue]]:
    """(training dialogues, held-out dialogues) of every `*.txt` file under `folder`."""
    files = sorted(folder.glob('*.txt'))
    if not files:
        raise SystemExit(f'--corpus {folder} holds no .txt file.')
    train, held_out = [], []
    for path in files:
        dialogues = read_dialogues(path)
        cut = len(dialogues) - max(1, int(len(dialogues) * HELD_OUT))
        train += dialogues[:cut]
        held_out += dialogues[cut:]
    return train, held_out


def encode_documents(dialogues: list[Dialogue], tokenizer, seed: int) -> list[int]:
    """Shuffle, render and tokenize: `<s> document </s> <s> document </s> …` as one list of ids."""
    rng = random.Random(seed)
    order = list(dialogues)
    rng.shuffle(order)
    texts = [render(d, rng) for d in order]
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(texts):
        ids.append(tokenizer.token_to_id('<s>'))
        ids += encoding.ids
        ids.append(tokenizer.token_to_id('</s>'))
    return ids
