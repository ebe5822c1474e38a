"""METEOR as nltk computes it, where its WordNet data is installed; nothing is ever downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from spt_parlai.metrics.text import words


@lru_cache(maxsize=1)
def available() -> bool:
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
