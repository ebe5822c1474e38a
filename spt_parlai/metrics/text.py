"""What a reply's text counts as: its words, and where it ends if the model ran on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_RUNS_ON = re.compile(r'R:|Q:|Summary:|\n|:')


def words(text: str) -> list[str]:
    """What white space separates: case, punctuation and articles stay as they are."""
    return text.split()


def trim(reply: str) -> str:
    """The reply up to the first `R:`, `Q:`, `Summary:`, line break or colon, as the paper's authors cut before they score."""
    return _RUNS_ON.split(reply, maxsplit=1)[0].strip()


def unigram_f1(reply: str, references: Sequence[str]) -> float:
    """F1 of the reply's words against the reference that it fits best, 0 to 1."""
    said = Counter(words(reply))
    return max(_f1(said, Counter(words(reference))) for reference in references)


def _f1(said: Counter, wanted: Counter) -> float:
    common = (said & wanted).total()
    return 2 * common / (said.total() + wanted.total()) if common else 0.0
