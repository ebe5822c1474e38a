"""PEFT's prompt tuning of one prompt, with the training loop of its documentation.

Rows are padded to the longest row of the batch, labels are −100 on context and padding, and the loss is the model's.
"""

from __future__ import annotations

import torch
from dialogues import Reader, draw_turns
from flops import LLMShape
from job import Job, StepSize, Trainer


class PeftLoop(Trainer):
    """PEFT around the LLM; a batch is `job.batch` turns."""

    def __init__(self, job: Job, lm: torch.nn.Module, reader: Reader, pool: list):
        from peft import PromptTuningConfig, TaskType, get_peft_model

        assert job.K == 1, f'PEFT trains one prompt, not {job.K}'
        self.job, self.reader = job, reader
        self.shape, self.device = LLMShape.of(lm), torch.device(job.device)
        self.model = get_peft_model(lm, PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=job.L))
        self.optimizer = torch.optim.Adam([p for p in self.model.parameters() if p.requires_grad], lr=0.001)
        self.batches = draw_turns(pool, job.batch, job.seed)

    def step(self) -> StepSize:
        turns = [self.reader.turns(episode[: t + 1])[-1] for episode, t in next(self.batches)]
        lengths = [len(turn.context) + len(turn.target) for turn in turns]
        ids = torch.full((len(turns), max(lengths)), self.reader.dict.eos)
        labels = torch.full_like(ids, -100)
        for n, turn in enumerate(turns):
            ids[n, : lengths[n]] = torch.tensor([*turn.context, *turn.target])
            labels[n, len(turn.context) : lengths[n]] = torch.tensor(turn.target)
        mask = torch.arange(ids.shape[1])[None] < torch.tensor(lengths)[:, None]
        batch = {'input_ids': ids, 'labels': labels, 'attention_mask': mask.long()}
        self.model(**{name: tensor.to(self.device) for name, tensor in batch.items()}).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        rows = [self.job.L + n for n in lengths]
        computed = len(rows) * max(rows)
        return StepSize(
            examples=len(turns),
            tokens=sum(rows),
            computed=computed,
            flops=self.shape.training(rows, computed),  # the model computes the logits of every position
        )
