"""Registry of the benchmark's contenders."""

from __future__ import annotations

from functools import partial

from dialogues import Reader, episodes
from job import Job, Trainer
from naive import Naive
from ours import Ours
from peft_loop import PeftLoop
from shapes import build, tokenizer_of

CONTENDERS = {
    'naive': Naive,
    'PEFT': PeftLoop,
    'per-turn': partial(Ours, packed=False),
    'packed': partial(Ours, packed=True),
    'together': partial(Ours, packed=True, together=True),
    'evaluation': partial(Ours, packed=True, trains=False),
}
POOL = 200  # dialogues to draw from


def make(job: Job) -> Trainer:
    """The contender of a job, around a newly built LLM."""
    lm = build(job.llm, job.dtype, job.device)
    window = lm.config.max_position_embeddings
    longest_target = min(128, window // 4)
    limit = min(job.limit, window - job.L - longest_target)
    reader = Reader(job.tokenizer or tokenizer_of(job.llm), lm.config.vocab_size, limit, longest_target)
    pool = episodes(job.data, max(POOL, job.batch))
    for episode in pool:  # fills the tokenizer's cache, which holds every piece from the second epoch on
        reader.turns(episode)
    return CONTENDERS[job.contender](job, lm, reader, pool)
