"""Selective Prompt Tuning as a ParlAI agent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from parlai.utils.distributed import get_rank

from spt_parlai.agents.chat_commands import PromptScores
from spt_parlai.agents.prompt_tuning import PromptTuningAgent
from spt_parlai.checkpoints.files import damage_explained
from spt_parlai.metrics.batch import information_metrics, usage_metrics
from spt_parlai.model.causal_lm import CausalLM
from spt_parlai.model.prompted_lm import Selection
from spt_parlai.model.retriever import Retriever
from spt_parlai.objective import Losses, SptObjective
from spt_parlai.objective.assignment import BY_CONTEXT, balanced, equal_sizes, even_loads
from spt_parlai.objective.losses import sum_per_example
from spt_parlai.objective.similarity import similar_pairs
from spt_parlai.options.declare import Opt, Option, OptionGroup, belongs, options_of
from spt_parlai.training.distributed import of_all_processes
from spt_parlai.training.seeding import noise_generator


def _check_force_prompt(opt: Opt) -> str | None:
    force, K = opt['force_prompt'], opt.get('num_prompts', 4)
    if isinstance(force, int) and not isinstance(force, bool) and -1 <= force < K:
        return None
    return f'give a prompt from 0 to {K - 1} (--num-prompts {K}), or -1 to let the retriever select'


def _check_assignment(opt: Opt) -> str | None:
    if opt['prompt_assignment'] == 'all' or opt.get('num_prompts', 4) > 1:
        return None
    return 'there is one prompt to assign replies to; add --num-prompts 2 or more, or leave it out'


def _assigned(*to: str):
    """The condition of options that need one of these assignments."""
    return belongs(f'--prompt-assignment {" or ".join(to)}', lambda opt: opt.get('prompt_assignment', 'all') in to)


_CONDITIONS: dict[str, dict[str, Any]] = {
    'prompt_assignment': {'check': _check_assignment},
    'assignment_epsilon': {'needs': _assigned('gated', 'mixture', 'wta', 'annealed', 'equal')},
    'assignment_balance': {'needs': _assigned('wta')},
    'assignment_window': {'needs': _assigned(*BY_CONTEXT)},
    'lambda_fusion': {'needs': _assigned('all')},
    'tau_gold': {'needs': _assigned('all', 'annealed')},
}

SPT = OptionGroup(
    'Selective Prompt Tuning',
    (
        Option('num_prompts', 4, 'K, number of soft prompts', int, at_least=1),
        Option(
            'activation_beta',
            10.0,
            'beta of the softplus that turns cosines into scores; 10 keeps them in [0, 1]',
            float,
            above=0,
        ),
        *(replace(option, **_CONDITIONS.get(option.name, {})) for option in options_of(SptObjective)),
        Option(
            'retriever_learningrate',
            0.0,
            'learning rate of the retriever (0: --learningrate, as for the prompts)',
            float,
            at_least=0,
            note='0 takes --learningrate',
        ),
        Option(
            'similarity_threshold',
            20.0,
            'contexts with a sentence BLEU (0-100) above this are pulled together, all others apart',
            float,
            at_least=0,
            at_most=100,
            note='the range of sentence BLEU',
        ),
        Option(
            'contrastive_text',
            'context',
            'which text of an example the contrast compares',
            choices=('context', 'persona'),
        ),
        Option(
            'contrastive_pairs',
            'all',
            'all: every two examples of a batch; across: only those of different dialogues',
            choices=('all', 'across'),
        ),
        Option(
            'score_noise',
            0.0,
            'strength of the normal noise on the scores before a prompt is selected, in evaluation (A.7)',
            float,
            at_least=0,
            note='0 adds none',
        ),
        Option(
            'force_prompt',
            -1,
            'always select this prompt, 0 to K-1 (-1: the retriever selects)',
            int,
            check=_check_force_prompt,
        ),
        Option(
            'prompt_chunk',
            0,
            'run the LLM for this many prompts at a time (0: all): same gradients, less memory',
            int,
            at_least=0,
        ),
        Option(
            'log_replies',
            0,
            'at every validation of a training run, write what each prompt replies to this many contexts into '
            'MODEL.metrics.jsonl, for spt dashboard',
            int,
            at_least=0,
        ),
    ),
)


class SptAgent(PromptTuningAgent):
    """Selective Prompt Tuning around a frozen causal LM (arXiv 2406.18187)."""

    kind = 'SptAgent'
    options = (*PromptTuningAgent.options, SPT)
    defaults = {'display_add_fields': 'selected_prompt,prompt_scores'}

    def __init__(self, opt, shared=None):
        self.objective = SptObjective(**{f.name: opt[f.name] for f in fields(SptObjective)})
        self._balance = torch.zeros(0)  # the bias of every prompt, for --prompt-assignment wta, once K is checked
        self._recent = torch.zeros(0, 0)  # [Q, D + K], means of contexts and log-likelihoods, for --assignment-window
        super().__init__(opt, shared)

    @property
    def num_prompts(self) -> int:
        return self.opt['num_prompts']

    def build_retriever(self, llm: CausalLM) -> Retriever:
        self._balance = torch.zeros(self.num_prompts)
        self._recent = torch.zeros(0, llm.hidden_size + self.num_prompts)
        return Retriever(llm.hidden_size, self.opt['activation_beta'])

    def model_options(self):
        return {name: self.opt[name] for name in ('score_noise', 'force_prompt', 'prompt_chunk')}

    def parameter_groups(self, params):
        """Give what follows the prompts, the retriever's two layers, a learning rate of their own where one is set."""
        prompts, *retriever = params
        rate = self.opt['retriever_learningrate']
        return [{'params': [prompts]}, {'params': retriever, 'lr': rate}] if rate else [prompts, *retriever]

    # ---- training and evaluation ----------------------------------------------------------------------

    def token_loss(self, batch):
        return partial(self.objective.token_loss, bias=batch.get('bias'))

    def _predict(self, batch):
        """Predict; in training, contexts or replies compete for the prompts (`--prompt-assignment`)."""
        if batch.is_training and self._balances_contexts:
            batch['bias'] = self._even_loads()
        elif batch.is_training and self.objective.prompt_assignment == 'wta':
            batch['bias'] = self._balance
        elif batch.is_training and self.objective.prompt_assignment == 'equal':
            batch['bias'] = self._equal_sizes(batch)
        return super()._predict(batch)

    @property
    def _balances_contexts(self) -> bool:
        return self.objective.prompt_assignment in BY_CONTEXT and self.objective.assignment_window > 0

    @torch.no_grad()
    def _even_loads(self) -> torch.Tensor:
        """Return the bias [K] that gives the prompts equal shares of the recent replies."""
        means, likelihood = self._recent.split([self._recent.shape[1] - self.num_prompts, self.num_prompts], dim=1)
        weights = self.objective.log_prior(self.bare_model.scores(means)).cpu()
        return even_loads(weights + likelihood if self.objective.prompt_assignment == 'mixture' else weights)

    @torch.no_grad()
    def _remember(self, batch, prediction) -> None:
        """Add the replies of one training batch, those of all processes, to the recent ones."""
        scored = batch.get('scored_vec')
        packed = () if scored is not None else (batch.get('row'), batch.get('context_length'))
        means = self.bare_model.context_means(batch.text_vec if scored is None else scored, *packed)
        likelihood = sum_per_example(prediction.log_probs, prediction.example, len(prediction.scores)).T
        everyone = torch.cat(of_all_processes(torch.cat([means, likelihood.to(means)], dim=1).cpu()))
        self._recent = torch.cat([self._recent, everyone])[-self.objective.assignment_window :]

    @torch.no_grad()
    def _equal_sizes(self, batch) -> torch.Tensor:
        """Assign the replies of all processes, in a pass without gradients; return the bias of ours, [B, K]."""
        found = self.bare_model(
            batch.text_vec,
            batch.label_vec,
            row=batch.get('row'),
            context_length=batch.get('context_length'),
            scored=batch.get('scored_vec'),
        )
        own = sum_per_example(found.log_probs, found.example, len(found.scores)).T.cpu()
        everyone = of_all_processes(own)
        sizes = [len(likelihood) for likelihood in everyone]
        return equal_sizes(torch.cat(everyone)).split(sizes)[get_rank()].to(found.scores)

    def _count_winners(self, prediction) -> None:
        """Move the balance by the winners of one training batch, those of all processes."""
        shares = self.objective.responsibilities(
            prediction.log_probs, prediction.scores, prediction.example, self._balance
        )
        won = torch.bincount(shares.argmax(-1), minlength=self.num_prompts).cpu()
        load = torch.stack(of_all_processes(won)).sum(0)
        self._balance = balanced(self._balance, load, self.objective.assignment_balance)

    def losses(self, batch, prediction) -> Losses:
        """Return the four terms of eq. 6."""
        similar = None
        if self.objective.lambda_contrastive:
            similar = similar_pairs(batch.texts[self.opt['contrastive_text']], self.opt['similarity_threshold'])
            similar = similar.to(prediction.scores.device)
        losses = self.objective(
            prediction.log_probs,
            prediction.scores,
            prediction.example,
            similar,
            self._noise(prediction.scores, batch),
            self._dialogues(batch),
            prediction.token_loss,
            batch.get('bias'),
        )
        if batch.is_training and self.objective.prompt_assignment == 'wta':
            self._count_winners(prediction)
        elif batch.is_training and self._balances_contexts:
            self._remember(batch, prediction)
        return losses

    def _dialogues(self, batch) -> torch.Tensor | None:
        """Return the number of each example's dialogue, int64 [B], for `--contrastive-pairs across`; None for `all`.

        It is also None without whole dialogues, where each example of a batch is of another dialogue anyway.
        """
        if self.opt['contrastive_pairs'] == 'all' or 'message' not in batch:
            return None
        return torch.tensor(batch.message)

    def _noise(self, scores: torch.Tensor, batch) -> torch.Tensor | None:
        """Draw the N(0, 1) noise of `--gold-noise`, float32 [B, K], in training only.

        It depends only on the seed, the process and the number of the batch, so a resumed run draws the same.
        """
        if not self.opt['gold_noise'] or not batch.is_training:
            return None
        batches = self._number_training_updates * self.opt.get('update_freq', 1) + self._number_grad_accum
        generator = noise_generator(self.opt.get('seed') or 0, get_rank(), batches)
        return torch.randn(scores.shape, generator=generator).to(scores)

    def metrics_of(self, prediction, losses):
        used = usage_metrics(prediction.selected, losses.nll)
        informed = information_metrics(prediction.scores, self.objective.tau_score)
        return {**super().metrics_of(prediction, losses), **used, **informed}

    def eval_step(self, batch):
        output = super().eval_step(batch)
        if output is not None:
            scores, selected = batch['selection']
            output.selected_prompt = selected.tolist()
            output.prompt_scores = [PromptScores(float(f'{s:.4g}') for s in row) for row in scores.tolist()]
        return output

    @torch.no_grad()
    def replies_of_all_prompts(self, observations: Sequence[Any]) -> list[dict[str, Any]]:
        """Reply to observed messages with every prompt.

        :return: for each message `scores`, K numbers; `selected`, the prompt that the retriever selects; and
            `replies`, K texts.
        """
        was_training = self.model.training
        self.model.eval()
        batch = self.batchify(observations)
        if self.use_cuda:
            batch = batch.to(0 if self.opt['gpu'] == -1 else self.opt['gpu'])
        scored = batch.get('scored_vec')
        scores, selected = self.bare_model.retrieve(batch.text_vec if scored is None else scored)
        replies = []
        for prompt in range(self.num_prompts):
            batch['selection'] = Selection(scores, torch.full_like(selected, prompt))
            found, _ = self._generate(batch, self.beam_size, self.label_truncate or 256)
            replies.append([self._v2t(tokens) for tokens, *_ in found])
        self.model.train(was_training)
        return [
            {'scores': s, 'selected': k, 'replies': list(texts)}
            for s, k, texts in zip(scores.tolist(), selected.tolist(), zip(*replies, strict=True), strict=True)
        ]

    # ---- the model file -------------------------------------------------------------------------------

    def state_dict(self):
        states = super().state_dict()
        if self._balances_contexts:
            states['recent'] = self._recent
        elif self.objective.prompt_assignment == 'wta':
            states['balance'] = self._balance
        return states

    def load(self, path):
        states = super().load(path)
        if 'balance' in states and not self._is_finetune:
            with damage_explained(path):
                self._balance = states['balance'].view(self.num_prompts)
        if 'recent' in states and not self._is_finetune:
            with damage_explained(path):
                self._recent = states['recent'].view(-1, self._recent.shape[1])
        return states
