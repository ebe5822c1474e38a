"""Which metrics say nothing about replies in a language, because they do not see its words."""

from __future__ import annotations

import re

# Thai, Lao, Tibetan, Burmese, Khmer, kana and Chinese characters: a sentence is written without spaces.
_WITHOUT_SPACES = re.compile(
    '[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]'
)
_SEEN_BY_ROUGE = re.compile('[a-zA-Z0-9]')  # rouge-score and ParlAI's py-rouge drop all other characters


def meaningless_for(text: str) -> str | None:
    """The sentence that warns of metrics which mean nothing for a gold reply; None where all of them see its words."""
    if _WITHOUT_SPACES.search(text):
        return (
            'There are replies in a script without spaces between words. The metrics of words (unigram_f1, sacrebleu, '
            'rouge, dist, meteor, persona_bleu, ppl_word; of ParlAI, f1, bleu and rouge) take each run of such '
            'characters for one word, and rouge does not see it at all: compare by ppl_byte or BERTScore.'
        )
    if not _SEEN_BY_ROUGE.search(text) and any(map(str.isalpha, text)):
        return (
            'There are replies without a letter from a to z. rouge1, rouge2, rougeL and, of ParlAI, rouge_1, rouge_2 '
            'and rouge_L see no other letters and score 0 there: compare by unigram_f1, sacrebleu or BERTScore.'
        )
    return None
