"""What all agents around an `SptModel` share: the mean prompt NLL is the loss, and ParlAI's metrics are of the selected prompt.

A subclass says what stands before the context (`build_prompts`), what chooses among it (`build_retriever`) and what of the LLM
itself trains (`tune`); and what its loss has beside the NLL (`losses`). One that says nothing is the frozen LLM alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from parlai.core.metrics import Metric

from spt_parlai.agent.llm_agent import FrozenLMAgent
from spt_parlai.agent.packed_batch import per_message
from spt_parlai.metrics.batch import loss_metrics, prediction_metrics
from spt_parlai.model.compilation import compile_layers
from spt_parlai.model.frozen_lm import FrozenLM
from spt_parlai.model.retriever import Retriever
from spt_parlai.model.soft_prompts import SoftPromptGroup
from spt_parlai.model.spt_model import Prediction, SptModel
from spt_parlai.objective import Losses, SptObjective
from spt_parlai.training import checkpoint


class PromptedAgent(FrozenLMAgent):
    """An agent whose model is an `SptModel` of one prompt, if not more."""

    objective = SptObjective(lambda_selection=0.0, lambda_contrastive=0.0, lambda_fusion=0.0)

    # ---- what a subclass says -------------------------------------------------------------------------

    def build_prompts(self, llm: FrozenLM) -> SoftPromptGroup:
        """The soft prompts [K, L, D] before they are trained; K = 1, L = 0: none."""
        return SoftPromptGroup.none(llm.hidden_size)

    def build_retriever(self, llm: FrozenLM) -> Retriever | None:
        """What scores them; None where there is nothing to choose."""
        return None

    def tune(self, llm: FrozenLM) -> torch.nn.Module | None:
        """Let weights of the LLM train; returns the module that owns them."""
        return None

    def model_options(self) -> dict[str, Any]:
        """Further arguments of `SptModel`."""
        return {}

    def describe_tuning(self) -> dict[str, Any]:
        """What must agree, beside the LLM and the prompts' shape, between a checkpoint and this agent: option → value."""
        return {}

    def losses(self, batch, prediction: Prediction) -> Losses:
        """The terms of the loss."""
        return self.objective(
            prediction.log_probs, prediction.scores, prediction.example, None, token_loss=prediction.token_loss
        )

    def metrics_of(self, prediction: Prediction, losses: Losses) -> Iterator[tuple[str, list[Metric]]]:
        """(name, a metric of each example)."""
        yield from prediction_metrics(
            prediction.log_probs, prediction.greedy, prediction.targets, prediction.example, prediction.selected
        )
        yield from loss_metrics(
            losses.total, losses.nll, losses.selection, losses.contrastive, losses.pairs, losses.fusion
        )

    # ---- the model ------------------------------------------------------------------------------------

    def build_model(self) -> SptModel:
        llm = self.load_llm()
        model = SptModel(
            llm,
            self.build_prompts(llm),
            self.build_retriever(llm),
            self.NULL_IDX,
            self.START_IDX,
            self.END_IDX,
            tuned=self.tune(llm),
            tokens_at_once=self.opt['tokens_at_once'],
            **self.model_options(),
        )
        self.log_memory(llm, model)
        if self.opt['llm_compile'] and self._should_initialize_optimizer():
            compile_layers(self.opt['llm'], llm)
        self.description = checkpoint.describe(self.opt, llm, model, self.kind, self.describe_tuning())
        return model

    def _model_input(self, batch):
        return (
            batch.text_vec,
            batch.label_vec,
            batch.get('selected_prompt'),
            batch.get('row'),
            batch.get('context_length'),
            batch.get('scored_vec'),
        )

    def _encoder_input(self, batch):
        return (batch.text_vec, batch.get('selected_prompt'), batch.get('scored_vec'))

    def compute_loss(self, batch, return_output=False):
        """The loss of a batch, a float32 scalar; metrics are recorded per example.

        :raises UsageError: in evaluation, for a loss that is not finite; in training that step is skipped.
        """
        if batch.label_vec is None:
            raise ValueError('Cannot compute loss without a label.')
        prediction = self.model(
            *self._model_input(batch), token_loss=self.objective.token_loss, gradient_scale=self.loss_scale
        )
        losses = self.losses(batch, prediction)
        if torch.isfinite(losses.total):
            self._record(batch, prediction, losses)
        elif not batch.is_training:
            self.refuse_evaluation()
        return (losses.total, (self.label_logits(batch), prediction)) if return_output else losses.total

    def _record(self, batch, prediction: Prediction, losses: Losses) -> None:
        message = batch.get('message')
        for name, values in (batch.get('counts') or {}).items():
            self.record_local_metric(name, values)
        for name, values in self.metrics_of(prediction, losses):
            self.record_local_metric(name, values if message is None else per_message(values, message))

    def _construct_label_token_losses(self, labels, model_output):
        """(token, loss under the selected prompt) pairs of each example, for `--verbose`."""
        prediction = model_output[1]
        losses: list[list[tuple[str, float]]] = [[] for _ in labels]
        token = range(len(prediction.example))
        for n, t, i in zip(prediction.example.tolist(), prediction.targets.tolist(), token):
            losses[n].append((self.dict[t], -float(prediction.log_probs[prediction.selected[n], i])))
        return losses
