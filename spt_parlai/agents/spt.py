"""Selective Prompt Tuning as a ParlAI agent."""

from __future__ import annotations

from dataclasses import fields

import torch
from parlai.utils.distributed import get_rank

from spt_parlai.agents.prompt_tuning import PromptTuningAgent
from spt_parlai.metrics.prompt_usage import usage_metrics
from spt_parlai.model.retriever import Retriever
from spt_parlai.objective import Losses, SptObjective
from spt_parlai.objective.similarity import similar_pairs
from spt_parlai.options.groups import SPT
from spt_parlai.training.seeding import noise_generator


class SptAgent(PromptTuningAgent):
    """Selective Prompt Tuning around a frozen causal LM (arXiv 2406.18187)."""

    @classmethod
    def add_cmdline_args(cls, parser, partial_opt=None):
        super().add_cmdline_args(parser, partial_opt)
        SPT.add_to(parser)
        parser.set_defaults(display_add_fields='selected_prompt,prompt_scores')
        return parser

    def __init__(self, opt, shared=None):
        self.objective = SptObjective(**{field.name: opt[field.name] for field in fields(SptObjective)})
        super().__init__(opt, shared)

    kind = 'SptAgent'
    num_prompts = property(lambda self: self.opt['num_prompts'])

    def build_retriever(self, llm) -> Retriever:
        return Retriever(llm.hidden_size, self.opt['activation_beta'])

    def model_options(self):
        return {name: self.opt[name] for name in ('score_noise', 'force_prompt', 'prompt_chunk')}

    # ---- training and evaluation ----------------------------------------------------------------------

    def losses(self, batch, prediction) -> Losses:
        """The four-term objective of eq. 6."""
        similar = None
        if self.objective.lambda_contrastive:
            similar = similar_pairs(batch.texts[self.opt['contrastive_text']], self.opt['similarity_threshold'])
            similar = similar.to(prediction.scores.device)
        return self.objective(
            prediction.log_probs,
            prediction.scores,
            prediction.example,
            similar,
            self._noise(prediction.scores, batch),
            self._dialogues(batch),
            prediction.token_loss,
        )

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

    def metrics_of(self, prediction, losses):
        yield from super().metrics_of(prediction, losses)
        yield from usage_metrics(prediction.selected, losses.nll)

    def eval_step(self, batch):
        if batch.text_vec is None:
            return None
        scored = batch.get('scored_vec')
        # contexts are scored once, so that loss, reply and log agree
        selection = batch['selection'] = self.bare_model.retrieve(batch.text_vec if scored is None else scored)
        output = super().eval_step(batch)
        output.selected_prompt = selection.selected.tolist()
        output.prompt_scores = [tuple(float(f'{s:.4g}') for s in row) for row in selection.scores.tolist()]
        return output
