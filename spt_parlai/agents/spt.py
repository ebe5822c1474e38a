"""Selective Prompt Tuning as a ParlAI agent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from parlai.core.metrics import SumMetric
from parlai.utils.distributed import get_rank
from torch.nn.utils.rnn import pad_sequence

from spt_parlai.agents import adaptive_prompts
from spt_parlai.agents.adaptive_prompts import AdaptivePrompts
from spt_parlai.agents.chat_commands import PromptScores
from spt_parlai.agents.competition import Competition, competition_of
from spt_parlai.agents.llm import device_of
from spt_parlai.agents.prompt_tuning import PromptTuningAgent
from spt_parlai.checkpoints.files import damage_explained
from spt_parlai.errors import naming
from spt_parlai.metrics.batch import information_metrics, usage_metrics
from spt_parlai.model.causal_lm import CausalLM
from spt_parlai.model.prompted_lm import Selection
from spt_parlai.model.retriever import Retriever
from spt_parlai.model.soft_prompts import SharedPrompts
from spt_parlai.objective import Losses, SptObjective
from spt_parlai.objective.assignment import BY_CONTEXT
from spt_parlai.objective.similarity import similar_pairs, similar_vectors
from spt_parlai.options.declare import Opt, Option, OptionGroup, belongs, options_of
from spt_parlai.retrieval.encoders import LLM as LLM_WORDS
from spt_parlai.retrieval.encoders import TextEncoder, TransformerEncoder
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


def _check_shared_rank(opt: Opt) -> str | None:
    rank, most = opt['prompt_shared_rank'], (opt.get('num_prompts', 4) - 1) * opt.get('prompt_length', 8)
    if isinstance(rank, int) and not isinstance(rank, bool) and 0 <= rank <= most:
        return None
    if not most:
        return 'there is one prompt, which has nothing to share; add --num-prompts 2 or more, or leave it out'
    return f'give a whole number from 1 to {most}, which is (K - 1) L, or 0 to share nothing'


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

_EMBEDS = belongs('--similarity-metric embedding', lambda opt: opt.get('similarity_metric') == 'embedding')
# About as many pairs of ConvAI2's and DailyDialog's contexts are above these as above a BLEU of 20, one in fifty: with
# the demo LM's words, and with all-MiniLM-L6-v2.
WORDS_THRESHOLD, ENCODER_THRESHOLD = 0.94, 0.55

SPT = OptionGroup(
    'Selective Prompt Tuning',
    (
        Option('num_prompts', 4, 'K, number of soft prompts', int, at_least=1),
        Option(
            'prompt_shared_rank',
            0,
            'r, rank of what each prompt adds to a part that all share: SP_k = SP_0 + A_k B (0: the prompts share '
            'nothing)',
            int,
            check=_check_shared_rank,
        ),
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
            'similarity_metric',
            'bleu',
            'how the contrast compares two texts: by their sentence BLEU, or by the cosine of their embeddings',
            choices=('bleu', 'embedding'),
        ),
        Option(
            'similarity_encoder',
            LLM_WORDS,
            "the embedding of a text: llm, the mean of the LLM's own word embeddings, or a Hugging Face id or local "
            'folder of a text encoder (mean pooling), such as sentence-transformers/all-MiniLM-L6-v2',
            needs=_EMBEDS,
        ),
        Option(
            'embedding_threshold',
            None,
            'contexts with a cosine above this are pulled together, all others apart (default: '
            f"{WORDS_THRESHOLD} for the LLM's words, {ENCODER_THRESHOLD} for an encoder)",
            float,
            at_least=-1,
            at_most=1,
            note='the range of cosines',
            needs=_EMBEDS,
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
        *adaptive_prompts.OPTIONS,
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
        self.competition: Competition  # built with the model
        self.adaptive: AdaptivePrompts | None = None
        self._text_encoder: TextEncoder | None = None
        super().__init__(opt, shared)

    @property
    def num_prompts(self) -> int:
        return self.opt['num_prompts']

    def build_prompts(self, llm):
        group, rank = super().build_prompts(llm), self.opt['prompt_shared_rank']
        if not rank:
            return group
        with naming('--prompt-shared-rank', rank):
            return SharedPrompts(group.tokens.detach(), rank)

    def tuning_asked_for(self, opt):
        return {**super().tuning_asked_for(opt), '--prompt-shared-rank': opt['prompt_shared_rank']}

    def describe_tuning(self):
        rank = self.opt['prompt_shared_rank']
        return {**super().describe_tuning(), **({'--prompt-shared-rank': rank} if rank else {})}

    def build_retriever(self, llm: CausalLM) -> Retriever:
        opt = self.opt
        if opt['similarity_encoder'] != LLM_WORDS and self.objective.lambda_contrastive:
            device = device_of(opt, self.use_cuda)
            self._text_encoder = TransformerEncoder(opt['similarity_encoder'], device, '--similarity-encoder')
        self.competition = competition_of(self.objective, self.num_prompts, llm.hidden_size)
        if opt['adaptive_prompts']:
            settings = (opt['adaptive_prompts'], opt['adaptive_every'], opt.get('seed') or 0)
            self.adaptive = AdaptivePrompts(self.num_prompts, *settings)
        return Retriever(llm.hidden_size, self.opt['activation_beta'])

    def model_options(self):
        return {name: self.opt[name] for name in ('score_noise', 'force_prompt', 'prompt_chunk')}

    def parameter_groups(self, params):
        """Give what follows the prompts, the retriever's two layers, a learning rate of their own where one is set."""
        rate, of_prompts = self.opt['retriever_learningrate'], len([*self.bare_model.soft_prompts.parameters()])
        prompts, retriever = params[:of_prompts], params[of_prompts:]
        return [{'params': prompts}, {'params': retriever, 'lr': rate}] if rate else [*params]

    # ---- training and evaluation ----------------------------------------------------------------------

    def token_loss(self, batch):
        return partial(self.objective.token_loss, bias=batch.get('bias'))

    def _predict(self, batch):
        """Predict; in training, contexts or replies compete for the prompts (`--prompt-assignment`)."""
        if batch.is_training:
            batch['bias'] = self.competition.bias(self.bare_model, batch)
        return super()._predict(batch)

    def losses(self, batch, prediction) -> Losses:
        """Return the four terms of eq. 6."""
        similar = None
        if self.objective.lambda_contrastive:
            similar = self._similar(batch.texts[self.opt['contrastive_text']]).to(prediction.scores.device)
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
        if batch.is_training:
            self.competition.observe(self.bare_model, batch, prediction)
            if self.adaptive is not None:
                self.adaptive.observe(prediction.selected)
        return losses

    def update_params(self):
        """Make an optimizer step, after which prompts may begin again (`--adaptive-prompts`)."""
        before = self._number_training_updates
        super().update_params()
        update = self._number_training_updates
        if self.adaptive is not None and update > before:
            for prompt, source in self.adaptive.look(update, self.bare_model.soft_prompts, self.optimizer):
                self.competition.copy_prompt(prompt, source)
                self.global_metrics.add('prompts_split', SumMetric(1))

    def _similar(self, texts: Sequence[str]) -> torch.Tensor:
        """Return which texts are similar by `--similarity-metric`, bool [B, B], true above the diagonal only."""
        if self.opt['similarity_metric'] == 'bleu':
            return similar_pairs(texts, self.opt['similarity_threshold'])
        threshold = self.opt['embedding_threshold']
        if self._text_encoder is not None:
            vectors = self._text_encoder(texts)
            return similar_vectors(vectors, ENCODER_THRESHOLD if threshold is None else threshold)
        ids = [torch.tensor(self.dict.txt2vec(text), dtype=torch.long) for text in texts]
        vectors = self.bare_model.context_means(pad_sequence(ids, batch_first=True, padding_value=self.NULL_IDX))
        return similar_vectors(vectors, WORDS_THRESHOLD if threshold is None else threshold)

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
        adaptive = {} if self.adaptive is None else self.adaptive.states()
        return {**super().state_dict(), **self.competition.states(), **adaptive}

    def load(self, path):
        states = super().load(path)
        if not self._is_finetune:
            with damage_explained(path):
                self.competition.restore(states)
                if self.adaptive is not None:
                    self.adaptive.restore(states)
        return states
