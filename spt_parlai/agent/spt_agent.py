"""Selective Prompt Tuning as a ParlAI agent."""

from __future__ import annotations

import torch
from parlai.utils.distributed import get_rank

from spt_parlai.agent.llm_agent import FrozenLMAgent
from spt_parlai.agent.packed_batch import per_message
from spt_parlai.exchange.prompts import read_prompts
from spt_parlai.metrics.batch import loss_metrics, prediction_metrics, usage_metrics
from spt_parlai.model.initialisation import initial_prompts
from spt_parlai.model.retriever import Retriever
from spt_parlai.model.soft_prompts import SoftPromptGroup
from spt_parlai.model.spt_model import Prediction, SptModel
from spt_parlai.objective import Losses, SptObjective
from spt_parlai.objective.similarity import similar_pairs
from spt_parlai.options import add_spt_args
from spt_parlai.training import checkpoint
from spt_parlai.training.seeding import noise_generator


class SptAgent(FrozenLMAgent):
    """Selective Prompt Tuning around a frozen causal LM (arXiv 2406.18187)."""

    @classmethod
    def add_cmdline_args(cls, parser, partial_opt=None):
        super().add_cmdline_args(parser, partial_opt)
        add_spt_args(parser)
        return parser

    def __init__(self, opt, shared=None):
        self.objective = SptObjective(**{
            name: opt[name]
            for name in ('lambda_selection', 'lambda_contrastive', 'lambda_fusion', 'tau_gold', 'tau_score', 'gold_noise')
        })
        super().__init__(opt, shared)

    def build_model(self) -> SptModel:
        opt, llm = self.opt, self.load_llm()
        prompts = initial_prompts(
            'normal' if self.loads_model else opt['prompt_init'], opt['num_prompts'], opt['prompt_length'],
            llm.embed, self.dict.txt2vec, len(self.dict), read_prompts,
        )
        model = SptModel(
            llm, SoftPromptGroup(prompts), Retriever(llm.hidden_size, opt['activation_beta']),
            self.NULL_IDX, self.START_IDX, self.END_IDX,
            score_noise=opt['score_noise'], force_prompt=opt['force_prompt'], prompt_chunk=opt['prompt_chunk'],
        )
        self.log_memory(llm, model.prompt_chunk)
        self.description = checkpoint.describe(opt, llm, model)
        return model

    # ---- training and evaluation ----------------------------------------------------------------------

    def _model_input(self, batch):
        return (batch.text_vec, batch.label_vec, batch.get('selected_prompt'), batch.get('row'), batch.get('context_length'))

    def _encoder_input(self, batch):
        return (batch.text_vec, batch.get('selected_prompt'))

    def compute_loss(self, batch, return_output=False):
        """The four-term objective of eq. 6, a float32 scalar; metrics are recorded per example.

        :raises UsageError: in evaluation, for a loss that is not finite; in training that step is skipped.
        """
        if batch.label_vec is None:
            raise ValueError('Cannot compute loss without a label.')
        prediction = self.model(*self._model_input(batch))
        similar = None
        if self.objective.lambda_contrastive:
            similar = similar_pairs(batch.texts[self.opt['contrastive_text']], self.opt['similarity_threshold'])
            similar = similar.to(prediction.scores.device)
        losses = self.objective(
            prediction.log_probs, prediction.scores, prediction.example, similar, self._noise(prediction.scores, batch),
            self._dialogues(batch),
        )
        if torch.isfinite(losses.total):
            self._record(batch, prediction, losses)
        elif not batch.is_training:
            self.refuse_evaluation()
        return (losses.total, (self.label_logits(batch), prediction)) if return_output else losses.total

    def _dialogues(self, batch) -> torch.Tensor | None:
        """Whose turn each example is, int64 [B], where `--contrastive-pairs across` wants pairs of different dialogues alone."""
        if self.opt['contrastive_pairs'] == 'all' or 'message' not in batch:
            return None  # turn by turn, each example of a batch is of another dialogue
        return torch.tensor(batch.message)

    def _noise(self, scores: torch.Tensor, batch) -> torch.Tensor | None:
        """N(0, 1) [B, K] for `--gold-noise`, in training alone: a function of seed, process and batch, so that it resumes."""
        if not self.opt['gold_noise'] or not batch.is_training:
            return None
        batches = self._number_training_updates * self.opt.get('update_freq', 1) + self._number_grad_accum
        generator = noise_generator(self.opt.get('seed') or 0, get_rank(), batches)
        return torch.randn(scores.shape, generator=generator).to(scores)

    def _record(self, batch, prediction: Prediction, losses: Losses) -> None:
        K, message = prediction.scores.shape[1], batch.get('message')
        for name, values in (batch.get('counts') or {}).items():
            self.record_local_metric(name, values)
        for name, values in (
            *prediction_metrics(
                prediction.log_probs, prediction.greedy, prediction.targets, prediction.example, prediction.selected
            ),
            *loss_metrics(losses.total, losses.nll, losses.selection, losses.contrastive, losses.pairs, losses.fusion),
            *usage_metrics(prediction.selected.tolist(), K),
        ):
            self.record_local_metric(name, values if message is None else per_message(values, message))

    def _construct_label_token_losses(self, labels, model_output):
        """(token, loss under the selected prompt) pairs of each example, for `--verbose`."""
        prediction = model_output[1]
        losses: list[list[tuple[str, float]]] = [[] for _ in labels]
        token = range(len(prediction.example))
        for n, t, i in zip(prediction.example.tolist(), prediction.targets.tolist(), token):
            losses[n].append((self.dict[t], -float(prediction.log_probs[prediction.selected[n], i])))
        return losses

    def eval_step(self, batch):
        if batch.text_vec is None:
            return None
        scores, batch['selected_prompt'] = self.bare_model.retrieve(batch.text_vec)  # once: loss, reply and log agree
        output = super().eval_step(batch)
        output.selected_prompt = batch['selected_prompt'].tolist()
        output.prompt_scores = [tuple(float(f'{s:.4g}') for s in row) for row in scores.tolist()]
        return output
