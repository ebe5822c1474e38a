"""This package's own model, objective, packing and similarity, per turn or on whole dialogues."""

from __future__ import annotations

import torch
from dialogues import Reader, draw_dialogues, draw_turns
from flops import LLMShape
from job import Job, StepSize, Trainer

from spt_parlai.dialogue.dictionary import NULL_ID, START_ID
from spt_parlai.model.causal_lm import CausalLM
from spt_parlai.model.layer_execution import compile_layers, recompute_activations
from spt_parlai.model.prompted_lm import PromptedLM
from spt_parlai.model.retriever import Retriever
from spt_parlai.model.rows import rows_of_like_length
from spt_parlai.model.soft_prompts import SoftPromptGroup
from spt_parlai.objective import SptObjective
from spt_parlai.objective.similarity import similar_pairs

THRESHOLD = 20.0  # Γ of eq. 4


class Ours(Trainer):
    """This package's training step, without ParlAI's loop.

    :param packed: a batch is `job.batch` whole dialogues; else it is `job.batch` turns.
    :param together: run all rows in one padded pass and keep its graph, as without `--tokens-at-once`.
    :param trains: a step trains; else it evaluates.
    """

    def __init__(
        self,
        job: Job,
        lm: torch.nn.Module,
        reader: Reader,
        pool: list,
        packed: bool,
        together: bool = False,
        trains: bool = True,
    ):
        self.job, self.reader, self.packed, self.trains = job, reader, packed, trains
        self.shape, self.device = LLMShape.of(lm), torch.device(job.device)
        llm = CausalLM(lm)
        if job.recompute:
            recompute_activations(llm)
        if job.compile:
            compile_layers(llm)
        prompts = torch.randn(job.K, job.L, llm.hidden_size)
        self.model = (
            PromptedLM(
                llm,
                SoftPromptGroup(prompts),
                Retriever(llm.hidden_size),
                NULL_ID,
                START_ID,
                reader.dict.eos,
                prompt_chunk=job.prompt_chunk,
                tokens_at_once=2**40 if together else job.tokens_at_once,
            )
            .to(self.device)
            .train(trains)
        )
        self.objective = SptObjective()
        self.token_loss = self.objective.token_loss if trains and not together else None
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.001)
        self.batches = (draw_dialogues if packed else draw_turns)(pool, job.batch, job.seed)
        self.make_batch = reader.packed if packed else reader.per_turn
        self.similar = similar_pairs

    def step(self) -> StepSize:
        with torch.set_grad_enabled(self.trains):
            return self._step(self.make_batch(next(self.batches)))

    def _step(self, batch: dict) -> StepSize:
        prediction = self.model(
            batch['text_vec'],
            batch['label_vec'],
            row=batch.get('row'),
            context_length=batch.get('context_length'),
            token_loss=self.token_loss,
        )
        similar = self.similar(batch['texts']['context'], THRESHOLD).to(self.device)
        losses = self.objective(
            prediction.log_probs, prediction.scores, prediction.example, similar, token_loss=prediction.token_loss
        )
        if self.trains:
            self.optimizer.zero_grad()
            losses.total.backward()
            self.optimizer.step()
        else:
            losses.total.item()  # as a report needs it
        return self._size(batch)

    def _size(self, batch: dict) -> StepSize:
        row = batch.get('row', torch.arange(batch['batchsize']))
        context, target = (batch['text_vec'] >= 0).sum(1), (batch['label_vec'] >= 0).sum(1)  # [R], [B]
        # Examples are in the order of their rows, so the last example of each row remains.
        last = torch.zeros_like(context).scatter_(0, row, torch.arange(len(row)))
        lengths = context + target[last] - 1  # [R]; the last target token is predicted, but not an input
        K, rows = self.job.K, [self.job.L + int(n) for n in lengths]
        groups = rows_of_like_length(rows, self.model.tokens_at_once // K)
        flops = self.shape.training if self.trains else self.shape.forward
        return StepSize(
            examples=batch['batchsize'],
            tokens=K * sum(rows),
            computed=K * sum(len(group) * longest for group, longest in groups),
            flops=flops(rows * K, K * int(target.sum())),
        )
