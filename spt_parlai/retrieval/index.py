"""An index of the training dialogues: a matrix of their vectors, which is kept on disk.

A search is one matrix product, which is fast enough for the ten thousand or so dialogues of a task.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from parlai.utils import logging
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from spt_parlai.checkpoints.files import write_atomically
from spt_parlai.dialogue.messages import Dialogue
from spt_parlai.dialogue.template import render
from spt_parlai.dialogue.training_set import has_in_order
from spt_parlai.retrieval.encoders import TextEncoder

_FORMAT = '1'
_AT_ONCE = 16  # texts of similar length that are encoded together


@dataclass
class DialogueIndex:
    """N dialogues and the encoder's vectors of them, float32 [N, E], each of length 1."""

    dialogues: Sequence[Dialogue]
    vectors: Tensor
    encoder: TextEncoder

    def most_similar(self, text: str, n: int, without: Sequence[str] = ()) -> list[int]:
        """The numbers of the n dialogues whose vectors have the largest cosine with that of `text`, best first.

        Of equal cosines the earlier dialogue comes first.

        :param without: utterances; a dialogue that contains all of them in this order is left out.
        """
        scores = self.vectors @ F.normalize(self.encoder([text]), dim=1)[0]  # [N]
        found: list[int] = []
        for i in scores.sort(descending=True, stable=True).indices.tolist():
            if len(found) == n:
                break
            if not without or not has_in_order(self.dialogues[i], without):
                found.append(i)
        return found


def fingerprint(texts: Sequence[str]) -> str:
    """A hash of these texts in this order."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:32]


def load_or_make(dialogues: Sequence[Dialogue], encoder: TextEncoder, cache: Path, keep: bool = True) -> DialogueIndex:
    """Read the index of these dialogues by this encoder from the folder `cache`, or make it.

    :param keep: whether to write a new index into that folder.
    """
    texts = [render(dialogue) for dialogue in dialogues]
    key = {'format': _FORMAT, 'dialogues': fingerprint(texts), 'encoder': encoder.fingerprint}
    path = cache / f'{fingerprint(sorted(key.values()))[:16]}.safetensors'
    vectors = _read(path, key, len(texts))
    if vectors is None:
        vectors = _encode(texts, encoder)
        if keep:
            write_atomically(path, lambda part: save_file({'vectors': vectors}, part, metadata=key))
            logging.info(f'the index of {len(texts)} dialogues is kept in {path}')
    return DialogueIndex(dialogues, vectors, encoder)


def _read(path: Path, key: dict[str, str], count: int) -> Tensor | None:
    """The vectors [N, E] of a file with the metadata `key`, or None if there is no such file or it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, 'pt') as file:
            vectors = file.get_tensor('vectors')
            right = (
                file.metadata() == key
                and vectors.dtype == torch.float32
                and vectors.ndim == 2
                and len(vectors) == count
            )
        if right and (vectors.norm(dim=1) - 1).abs().max() < 1e-3:
            return vectors
        reason = 'its content does not match its name'
    except (SafetensorError, OSError) as error:
        reason = ' '.join(str(error).split())[:100]
    logging.warning(f'{path} is damaged ({reason}): the index is made anew.')
    return None


def _encode(texts: Sequence[str], encoder: TextEncoder) -> Tensor:
    """The vectors of N texts, float32 [N, E], each of length 1. Texts of similar length are encoded together."""
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    parts = [
        encoder([texts[i] for i in by_length[first : first + _AT_ONCE]])
        for first in tqdm(
            range(0, len(texts), _AT_ONCE), desc=f'indexing {len(texts)} dialogues', disable=len(texts) < 500
        )
    ]
    vectors = torch.cat(parts)
    return F.normalize(vectors[torch.tensor(by_length).argsort()], dim=1)
