"""The agent that ParlAI drives: `-m spt_parlai.agents:SptAgent`."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from parlai.core.torch_generator_agent import TorchGeneratorAgent
from parlai.utils import logging
from parlai.utils.distributed import get_rank

from spt_parlai import checkpoint, hub
from spt_parlai.chat import TASKS_WITHOUT_PERSONA, announce, chosen_persona, draw_persona
from spt_parlai.dialogue.dictionary import TokenizerDictionary
from spt_parlai.dialogue.history import DialogueHistory
from spt_parlai.errors import UsageError
from spt_parlai.metrics.batch import loss_metrics, prediction_metrics, usage_metrics
from spt_parlai.model.loading import load_frozen_lm
from spt_parlai.model.retriever import Retriever
from spt_parlai.model.soft_prompts import SoftPromptGroup, initial_prompts
from spt_parlai.model.spt_model import Prediction, SptModel
from spt_parlai.objective import Losses, SptObjective
from spt_parlai.objective.similarity import similar_pairs
from spt_parlai.options import (
    add_chat_args,
    add_llm_args,
    add_spt_args,
    check_options,
    set_spt_defaults,
    skips_generation,
)
from spt_parlai.seeding import seed_everything
from spt_parlai.window import share_window, window_size


class SptAgent(TorchGeneratorAgent):
    """Selective Prompt Tuning around a frozen causal LM (arXiv 2406.18187)."""

    fp16 = property(lambda self: False, lambda self, value: None, doc='What trains is float32 always.')

    @classmethod
    def add_cmdline_args(cls, parser, partial_opt=None):
        super().add_cmdline_args(parser, partial_opt)
        add_llm_args(parser)
        add_spt_args(parser)
        add_chat_args(parser)
        set_spt_defaults(parser)
        return parser

    @staticmethod
    def dictionary_class():
        return TokenizerDictionary

    @classmethod
    def history_class(cls):
        return DialogueHistory

    # ---- construction ---------------------------------------------------------------------------------

    def __init__(self, opt, shared=None):
        self.progress: dict[str, Any] = {}  # of the training run, set by spt_parlai.resume
        self._replaying = False
        if shared is None:
            check_options(opt)
            opt.setdefault('dict_file', None)  # ParlAI asks for it; a dictionary of ours has no such option
            path, self._is_finetune = self._get_init_model(opt, shared)
            self._loaded = (path, checkpoint.load_states(path)) if path else (None, {})  # a bad file is refused before the LLM loads
            opt['llm'] = hub.portable(opt['llm'])
            self._asked = {name: opt.get(name) for name in ('text_truncate', 'label_truncate')}
            opt['text_truncate'], opt['label_truncate'] = share_window(
                window_size(hub.load_config(opt['llm'], opt.get('llm_revision'))), opt['prompt_length'],
                opt.get('text_truncate') or opt.get('truncate'), opt.get('label_truncate') or opt.get('truncate'),
                opt['max_new_tokens'],
            )
            if self._seed(opt) is not None:
                seed_everything(self._seed(opt), get_rank())
        self.objective = SptObjective(**{
            name: opt[name]
            for name in ('lambda_selection', 'lambda_contrastive', 'lambda_fusion', 'tau_gold', 'tau_score')
        })
        super().__init__(opt, shared)

    @staticmethod
    def _seed(opt) -> int | None:
        """A chat repeats only when asked to; everything else repeats with the seed stored in the model."""
        return (opt.get('override') or {}).get('seed') if opt.get('interactive_mode') else opt.get('seed')

    def build_history(self):
        persona: list[str] = []
        if self.opt.get('interactive_mode'):
            chosen = chosen_persona(self.opt)
            if chosen is not None:
                persona = chosen
            elif (self.opt.get('override') or {}).get('task') in TASKS_WITHOUT_PERSONA:  # 'task' itself is the trained one
                persona = draw_persona()
            announce(self.id, persona)
        return DialogueHistory(
            self.opt, persona, maxlen=self.text_truncate, size=self.histsz, dict_agent=self.dict
        )

    def build_model(self) -> SptModel:
        opt = self.opt
        llm = load_frozen_lm(
            opt['llm'], opt.get('llm_revision'), self._llm_dtype(), self._device(), opt['llm_device_map'],
            opt['llm_quantization'],
        )
        logging.info(f"--llm {opt['llm']}: {llm.num_parameters:,} frozen parameters, {llm.dtype}, on {llm.device}")
        words = llm.embed(torch.arange(1 if opt['prompt_init'] == 'normal' else len(self.dict)))  # a big LLM's are many
        prompts = initial_prompts(opt['prompt_init'], opt['num_prompts'], opt['prompt_length'], words)
        model = SptModel(
            llm, SoftPromptGroup(prompts), Retriever(llm.hidden_size), self.NULL_IDX, self.START_IDX, self.END_IDX
        )
        self.description = checkpoint.describe(opt, llm, model)
        return model

    def _device(self) -> torch.device:
        return torch.device('cuda', max(self.opt['gpu'], 0)) if self.use_cuda else torch.device('cpu')

    def _llm_dtype(self) -> str:
        """ParlAI's --fp16 true is a wish for speed: the LLM, and it alone, runs in half precision on a GPU."""
        if self.opt.get('fp16') and self.use_cuda and self.opt['llm_dtype'] == 'auto':
            return 'bfloat16' if torch.cuda.is_bf16_supported() else 'float16'
        return self.opt['llm_dtype']

    def set_interactive_mode(self, mode, shared=False):
        super().set_interactive_mode(mode, shared)
        self.skip_generation = not mode and skips_generation(self.opt)

    # ---- observations → batch -------------------------------------------------------------------------

    def _set_text_vec(self, obs, history, truncate):
        if obs.is_padding():
            return obs
        context = history.context()
        obs.force_set('text_vec', torch.LongTensor(context.ids))
        obs.force_set('full_text', context.text)
        obs.force_set('full_text_vec', list(history.full_context().ids) if self.beam_context_block_ngram > 0 else [])
        obs.force_set('contrastive_text', self._contrastive_text(context, history))
        obs.force_set('context_original_length', context.length)
        obs.force_set('context_truncate_rate', context.length > len(context.ids))
        obs.force_set('context_truncated_length', context.length - len(context.ids))
        return obs

    def _contrastive_text(self, context, history) -> str:
        return ' '.join(history.dialogue.persona) if self.opt['contrastive_text'] == 'persona' else context.text

    def _vectorize_text_with_truncate_stats(
        self, text, add_start=False, add_end=False, truncate=None, truncate_left=True
    ):
        """A target: its tokens and EOS. EOS stays also where the target is cut (method: its loss always counts)."""
        ids = self.dict.txt2vec(text)
        length = len(ids) + 1
        if truncate is not None:
            ids = ids[: truncate - 1]
        return torch.LongTensor([*ids, self.END_IDX]), length, length > len(ids) + 1

    def batchify(self, obs_batch, sort=False):
        batch = super().batchify(obs_batch, sort=sort)
        if batch.batchsize:
            batch['contrastive_texts'] = [obs_batch[i]['contrastive_text'] for i in batch.valid_indices]
        return batch

    @contextlib.contextmanager
    def replaying(self):
        """Batches are drawn and observed but not trained on (see `spt_parlai.resume`)."""
        self._replaying = True
        try:
            yield
        finally:
            self._replaying = False

    def train_step(self, batch):
        return None if self._replaying else super().train_step(batch)

    # ---- training and evaluation ----------------------------------------------------------------------

    def _model_input(self, batch):
        return (batch.text_vec, batch.label_vec)

    def compute_loss(self, batch, return_output=False):
        """The four-term objective of eq. 6, a float32 scalar; metrics are recorded per example."""
        if batch.label_vec is None:
            raise ValueError('Cannot compute loss without a label.')
        prediction = self.model(*self._model_input(batch))
        similar = None
        if self.objective.lambda_contrastive:
            similar = similar_pairs(batch.contrastive_texts, self.opt['similarity_threshold'])
            similar = similar.to(prediction.scores.device)
        losses = self.objective(prediction.log_probs, prediction.scores, prediction.example, similar)
        self._record(prediction, losses)
        return (losses.total, (None, prediction)) if return_output else losses.total

    def _record(self, prediction: Prediction, losses: Losses) -> None:
        K = prediction.scores.shape[1]
        for name, values in (
            *prediction_metrics(
                prediction.log_probs, prediction.greedy, prediction.targets, prediction.example, prediction.selected
            ),
            *loss_metrics(losses.total, losses.nll, losses.selection, losses.contrastive, losses.fusion),
            *usage_metrics(prediction.selected.tolist(), K),
        ):
            self.record_local_metric(name, values)

    def _construct_label_token_losses(self, labels, model_output):
        """(token, loss under the selected prompt) pairs of each example, for `--verbose`."""
        prediction = model_output[1]
        losses: list[list[tuple[str, float]]] = [[] for _ in labels]
        token = range(len(prediction.example))
        for n, t, i in zip(prediction.example.tolist(), prediction.targets.tolist(), token):
            losses[n].append((self.dict[t], -float(prediction.log_probs[prediction.selected[n], i])))
        return losses

    # ---- replies --------------------------------------------------------------------------------------

    @property
    def bare_model(self) -> SptModel:
        """The model without the wrapper that distributed training puts around it."""
        return getattr(self.model, 'module', self.model)

    def _encoder_input(self, batch):
        return (batch.text_vec,)

    def eval_step(self, batch):
        output = super().eval_step(batch)
        if output is not None:
            scores, selected = self.bare_model.retrieve(batch.text_vec)
            output.selected_prompt = selected.tolist()
            output.prompt_scores = [tuple(float(f'{s:.4g}') for s in row) for row in scores.tolist()]
        return output

    def _generate(self, batch, beam_size, max_ts, prefix_tokens=None):
        return super()._generate(batch, beam_size, min(max_ts, self.opt['max_new_tokens']), prefix_tokens)

    def _get_batch_context(self, batch):
        """What context blocking looks at, padded on the left with each context's own first token (never a padding id)."""
        context = super()._get_batch_context(batch)
        if not context.numel():
            return context
        rows = [[i for i in row if i >= 0] for row in context.tolist()]
        width = max(map(len, rows))
        return torch.tensor([row[:1] * (width - len(row)) + row for row in rows])

    def rank_eval_label_candidates(self, batch, batchsize):
        """Candidates by their NLL per token under the selected prompt, best first."""
        encoded = self.bare_model.encoder(*self._encoder_input(batch))
        ranked, ranked_losses = [], []
        for i in range(batchsize):
            candidates, _ = self._pad_tensor(batch.candidate_vecs[i], is_label=True)
            logits, _ = self.bare_model.decode_forced(
                self.bare_model.reorder_encoder_states(encoded, [i] * len(candidates)), candidates
            )
            real = (candidates >= 0).to(logits.device)
            log_probs = torch.log_softmax(logits.float(), -1)
            nll = -log_probs.gather(-1, candidates.clamp(min=0).to(logits.device)[..., None])[..., 0]
            losses, order = ((nll * real).sum(1) / real.sum(1)).sort()
            ranked.append([batch.candidates[i][o] for o in order.tolist()])
            ranked_losses.append(losses.tolist())
        return ranked, ranked_losses

    # ---- checkpoints ----------------------------------------------------------------------------------

    def state_dict(self):
        states = {**super().state_dict(), 'spt': self.description, 'progress': self.progress}
        if self._number_grad_accum:  # in the middle of an update (--update-freq)
            states['accumulated'] = {
                'batches': self._number_grad_accum, 'gradients': [p.grad for p in self.bare_model.parameters()]
            }
        return states

    def save(self, path=None):
        """Options first, then the checkpoint, each whole or not at all."""
        path = self.opt.get('model_file') if path is None else path
        if path:
            options = {**self.opt, **self._asked}  # the limits that were asked for, not what this window made of them
            checkpoint.save_json({k: v for k, v in options.items() if k != 'training_loop'}, f'{path}.opt')
            self.dict.save(f'{path}.dict')
            checkpoint.save_states(self.state_dict(), path)

    def load(self, path):
        states = self._loaded[1] if path == self._loaded[0] else checkpoint.load_states(path)
        self._loaded = (None, {})
        checkpoint.check_match(path, states['spt'], self.description)
        try:
            self.load_state_dict(states['model'])
        except RuntimeError as error:
            raise UsageError(f"{path} is damaged ({' '.join(str(error).split())}); restore it from a copy.") from error
        if 'optimizer' in states and hasattr(self, 'optimizer'):
            with contextlib.suppress(ValueError):  # another optimizer: init_optim says so and starts it anew
                self.optimizer.load_state_dict(states['optimizer'])
        self.progress = states.get('progress', {})
        if 'accumulated' in states and not self._is_finetune:
            self._number_grad_accum = states['accumulated']['batches']
            for parameter, gradient in zip(self.model.parameters(), states['accumulated']['gradients'], strict=True):
                parameter.grad = None if gradient is None else gradient.to(parameter.device)
        return states
