"""A random sequence classifier with a few thousand weights."""

from __future__ import annotations

from pathlib import Path

import torch


def write_classifier(folder: Path, tokenizer_of: str, *labels: str) -> Path:
    """Write a Hugging Face folder of a classifier with these labels and the tokenizer of another folder."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=512,
            initializer_range=1.0,
            id2label=dict(enumerate(labels)),
        )
        BertForSequenceClassification(config).save_pretrained(folder)
    return folder
