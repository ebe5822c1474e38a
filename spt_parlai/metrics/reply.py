"""One reply and its references → the paper's metrics by name, each on the 0–100 scale. Knows no model and no ParlAI option.

What a reply's text counts as: its words, and where it ends if the model ran on.

ROUGE-1, -2 and -L as rouge-score computes them, without stemming.

METEOR as nltk computes it, where its WordNet data is installed; nothing is ever downloaded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

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


NAMES = ('rouge1', 'rouge2', 'rougeL')


@lru_cache(maxsize=1)
def _scorer():
    from rouge_score.rouge_scorer import RougeScorer  # half a second, which only an evaluation with replies needs

    return RougeScorer(list(NAMES), use_stemmer=False)


def rouge(reply: str, references: Sequence[str]) -> dict[str, float]:
    """name → F-measure against the reference that it is highest for, 0 to 1."""
    return {name: score.fmeasure for name, score in _scorer().score_multi(references, reply).items()}


@lru_cache(maxsize=1)
def meteor_available() -> bool:
    """Is nltk's WordNet here? (`python -m nltk.downloader wordnet` brings it.)"""
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except (LookupError, OSError):  # absent, or only a part of it
        return False
    return True


def meteor(reply: str, references: Sequence[str]) -> float:
    """Of the reply's words against the reference that it is highest for, 0 to 1."""
    from nltk.corpus import wordnet
    from nltk.translate.meteor_score import meteor_score

    return meteor_score([words(reference) for reference in references], words(reply), wordnet=wordnet)
