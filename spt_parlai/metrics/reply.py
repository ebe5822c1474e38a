"""Scores of one reply, all from 0 to 1: unigram F1, ROUGE and METEOR against its references, and F1 with a persona.

Each metric's value over a corpus is the mean over its replies. Where a reply has several references, the score is
that of the reference which gives the highest one.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

ROUGES = ('rouge1', 'rouge2', 'rougeL')  # rouge-score's names, and the metrics'
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_END_OF_REPLY = re.compile(r'R:|Q:|Summary:|\n|:')


def trim(reply: str) -> str:
    """The reply up to the first `R:`, `Q:`, `Summary:`, line break or colon, where the paper's authors cut it."""
    return _END_OF_REPLY.split(reply, maxsplit=1)[0].strip()


def words(text: str) -> list[str]:
    """The words that white space separates. Case, punctuation and articles stay as they are."""
    return text.split()


def unigram_f1(reply: str, references: tuple[str, ...]) -> float:
    """F1 of the reply's words."""
    said = Counter(words(reply))
    return max(_f1(said, Counter(words(reference))) for reference in references)


def persona_f1(reply: str, persona: str) -> float:
    """F1 of the different content words of the reply and of the persona."""
    said, told = content_words(reply), content_words(persona)
    common = len(said & told)
    return 2 * common / (len(said) + len(told)) if common else 0.0


def content_words(text: str) -> set[str]:
    """The different words of an English text without its function words, in lower case."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # takes a second, which only this needs

    words = {word.partition("'")[0] for word in _WORD.findall(text.lower())}
    return {word for word in words if len(word) > 1} - ENGLISH_STOP_WORDS


def _f1(said: Counter[str], wanted: Counter[str]) -> float:
    common = (said & wanted).total()
    return 2 * common / (said.total() + wanted.total()) if common else 0.0


@lru_cache(maxsize=1)  # every one of the names is asked for the same reply
def rouge(reply: str, references: tuple[str, ...]) -> dict[str, float]:
    """Name (see `ROUGES`) → F-measure as rouge-score computes it, without stemming."""
    return {name: score.fmeasure for name, score in _rouge_scorer().score_multi(references, reply).items()}


@lru_cache(maxsize=1)
def _rouge_scorer():
    from rouge_score.rouge_scorer import RougeScorer  # takes half a second, which only evaluation with replies needs

    return RougeScorer(list(ROUGES), use_stemmer=False)


def meteor(reply: str, references: tuple[str, ...]) -> float | None:
    """METEOR as nltk computes it; None if nltk's WordNet data is not installed, because nothing is downloaded here."""
    if not meteor_available():
        return None
    from nltk.corpus import wordnet
    from nltk.translate.meteor_score import meteor_score

    return meteor_score([words(reference) for reference in references], words(reply), wordnet=wordnet)


@lru_cache(maxsize=1)
def meteor_available() -> bool:
    """Whether nltk's WordNet data is installed. `python -m nltk.downloader wordnet` installs it."""
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except (LookupError, OSError):  # missing, or incomplete
        return False
    return True
