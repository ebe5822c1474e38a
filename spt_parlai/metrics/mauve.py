"""MAUVE (Pillutla et al., 2021): how near the distribution of all replies is to that of people's, by mauve-text."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

BATCH = 32
LONGEST = 256  # tokens of a reply


def check_installed() -> None:
    """:raises ValueError: if mauve-text, which is optional, is not installed."""
    if importlib.util.find_spec('mauve') is None:
        raise ValueError("mauve-text is not installed; pip install 'spt_parlai[mauve]'")


def mauve(replies: Sequence[str], references: Sequence[str], folder: str | Path) -> float:
    """MAUVE between two sets of texts, 0 to 100. It needs hundreds of texts, and the same LM in every comparison.

    :param folder: a Hugging Face folder of an LM, or an id that is cached.
    :raises ValueError: if mauve-text is not installed, or the LM cannot be loaded.
    """
    check_installed()
    from mauve import compute_mauve

    p, q = np.split(features([*references, *replies], folder), [len(references)])
    return 100 * float(compute_mauve(p_features=p, q_features=q, verbose=False).mauve)


def features(texts: Sequence[str], folder: str | Path) -> np.ndarray:
    """The LM's last hidden state at the last token of each text, float32 [texts, D], as MAUVE's authors take it.

    :raises ValueError: if the LM cannot be loaded.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).float().eval()
    except Exception as error:  # damaged files raise whatever their readers raise
        reason = ' '.join(str(error).split())[:200]
        raise ValueError(f'the LM could not be loaded ({reason}); give the folder of an LM') from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = 'right'
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # batches of like lengths
    found = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        batch = [texts[i] if texts[i].strip() else tokenizer.eos_token for i in chosen]
        tokens = tokenizer(batch, padding=True, truncation=True, max_length=LONGEST, return_tensors='pt')
        last = tokens['attention_mask'].sum(-1) - 1
        with torch.inference_mode():
            states = model(input_ids=tokens['input_ids'], attention_mask=tokens['attention_mask']).last_hidden_state
        found[chosen] = states[torch.arange(len(chosen)), last].numpy()
    return found
