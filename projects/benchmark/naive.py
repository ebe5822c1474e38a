"""The naive pattern, the baseline: one padded pass per prompt, with the float32 logits of every position kept for all.

It was written from a description of the method's first implementation. All rows have 512 tokens, whatever their
content. K passes run one after the other, and the full-vocabulary logits of all K stay in memory until the fusion loss
has summed them, weighted by the retriever's scores.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from dialogues import Reader, draw_turns
from flops import LLMShape
from job import Job, StepSize, Trainer
from sacrebleu import sentence_bleu

PADDED = 512  # tokens of a row, soft prompt included
IGNORED = -100


class Naive(Trainer):
    """K padded passes per batch of `job.batch` turns."""

    def __init__(self, job: Job, lm: torch.nn.Module, reader: Reader, pool: list):
        self.job, self.lm, self.reader = job, lm.requires_grad_(False), reader
        self.shape, self.device = LLMShape.of(lm), torch.device(job.device)
        D = self.shape.D
        self.prompts = torch.nn.Parameter(torch.randn(job.K, job.L, D, device=self.device))
        self.linear = torch.nn.Linear(D, D, device=self.device)
        self.optimizer = torch.optim.Adam([self.prompts, *self.linear.parameters()], lr=0.001)
        self.width = min(PADDED, lm.config.max_position_embeddings) - job.L
        self.batches = draw_turns(pool, job.batch, job.seed)

    def step(self) -> StepSize:
        turns = [self.reader.turns(episode[: t + 1])[-1] for episode, t in next(self.batches)]
        B, K, L, T = len(turns), self.job.K, self.job.L, self.width
        ids = torch.full((B, T), self.reader.dict.eos)
        labels = torch.full((B, L + T), IGNORED)
        mask = torch.zeros(B, L + T, dtype=torch.long)
        for n, turn in enumerate(turns):
            row = [*turn.context, *turn.target][-T:]
            ids[n, : len(row)] = torch.tensor(row)
            labels[n, L + len(row) - len(turn.target) : L + len(row)] = torch.tensor(turn.target)
            mask[n, : L + len(row)] = 1
        ids, labels, mask = (tensor.to(self.device) for tensor in (ids, labels, mask))

        words = self.lm.get_input_embeddings()(ids)  # [B, T, D]
        context = self.linear(words.float().mean(1))
        scores = F.cosine_similarity(context[:, None], self.linear(self.prompts.mean(1))[None], dim=-1)  # [B, K]
        weights = F.softplus(scores)
        logits, nll = [], []
        for prompt in self.prompts:  # one pass for each
            rows = torch.cat([prompt.to(words.dtype).expand(B, L, -1), words], dim=1)
            output = self.lm(inputs_embeds=rows, attention_mask=mask, use_cache=False)
            logits.append(output.logits.float())  # [B, L + T, V]
            nll.append(self._nll(logits[-1], labels))
        nll = torch.stack(nll)  # [K, B]
        gold = torch.softmax(-nll.detach().T, dim=-1)
        selection = F.kl_div(torch.log_softmax(weights, -1), gold, reduction='batchmean')
        fused = sum(weights[:, i, None, None] * logits[i] for i in range(K))
        loss = (
            nll.mean()
            + selection
            + self._contrast(weights, [turn.persona for turn in turns])
            + self._nll(fused, labels).mean()
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        rows = [L + T] * (B * K)
        return StepSize(
            examples=B,
            tokens=int(mask.sum()) * K,
            computed=sum(rows),
            flops=self.shape.training(rows, sum(rows)),
        )

    @staticmethod
    def _nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """logits [B, T, V], labels [B, T] → NLL [B], the mean over each example's target tokens."""
        labels = labels[:, 1:]
        shifted = logits[:, :-1].flatten(0, 1)  # a contiguous copy, as in the usual implementation
        token = F.cross_entropy(shifted, labels.flatten(), ignore_index=IGNORED, reduction='none').view_as(labels)
        return token.sum(1) / (labels != IGNORED).sum(1)

    @staticmethod
    def _contrast(scores: torch.Tensor, personas: list[str]) -> torch.Tensor:
        """Sum over the pairs of a batch; scores [B, K]. Personas with a BLEU above 20 count as similar."""
        total = scores.new_zeros(())
        for m in range(len(personas)):
            for n in range(m + 1, len(personas)):
                cosine = F.cosine_similarity(scores[m], scores[n], dim=0)
                similar = sentence_bleu(personas[m], [personas[n]]).score > 20
                total = total + (1 - cosine if similar else cosine.clamp(min=0))
        return total
