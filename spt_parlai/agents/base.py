"""A ParlAI generator around a frozen LLM: its window, its dialogue template, its replies and its checkpoints.

What is trained around the LLM, and how, is the business of the agents in `spt_parlai.agents`.

What all agents around an `PromptedLM` share: the mean prompt NLL is the loss, and ParlAI's metrics are of the selected prompt.

A subclass says what stands before the context (`build_prompts`), what chooses among it (`build_retriever`) and what of the LLM
itself trains (`tune`); and what its loss has beside the NLL (`losses`). One that says nothing is the frozen LLM alone.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import torch
from parlai.core.metrics import Metric
from parlai.core.torch_generator_agent import TorchGeneratorAgent
from parlai.utils import logging
from parlai.utils.distributed import get_rank, is_distributed

from spt_parlai import hub
from spt_parlai.agents.batching import Turn, pack_batch, padded, per_message, share_window, turn_counts, window_size
from spt_parlai.agents.generation import search_batch
from spt_parlai.agents.optimization import SteadySteps, memory_errors_explained
from spt_parlai.agents.persistence import KeptPromises, SavedAgent
from spt_parlai.agents.persona import persona_of_chat
from spt_parlai.checkpoints import files
from spt_parlai.dialogue.dictionary import TokenizerDictionary
from spt_parlai.dialogue.history import ContextOf, DialogueHistory
from spt_parlai.dialogue.messages import check_message
from spt_parlai.dialogue.mutator import FIELD, packs
from spt_parlai.errors import naming
from spt_parlai.metrics.prediction import loss_metrics, prediction_metrics
from spt_parlai.model.causal_lm import CausalLM
from spt_parlai.model.layer_execution import compile_layers, recompute_activations
from spt_parlai.model.loading import load_llm, quantization_config, read_device_map
from spt_parlai.model.memory_estimate import training_memory
from spt_parlai.model.prompted_lm import Prediction, PromptedLM
from spt_parlai.model.retriever import Retriever
from spt_parlai.model.soft_prompts import SoftPromptGroup
from spt_parlai.objective import Losses, SptObjective
from spt_parlai.options.groups import CHAT, GROUPS, LLM, METRICS, set_llm_of, set_training_defaults
from spt_parlai.options.validate import check_options, chosen_bert
from spt_parlai.training.distributed import accumulates_alone, average_accumulated_gradients
from spt_parlai.training.seeding import seed_everything

_USUAL_LENGTH, _USUAL_TARGET = 256, 16  # tokens of a ConvAI2 dialogue and of a target, for the memory estimate
_USUAL_TURNS = 6


class LLMAgent(SavedAgent, SteadySteps, KeptPromises, TorchGeneratorAgent):
    """Everything of an agent but what it trains. A subclass builds `self.model` around `self.load_llm()`.

    kind: names the agent whose checkpoints this one reads; trains: is there anything to train?
    """

    kind: str
    trains = True

    fp16 = property(lambda self: False, lambda self, value: None, doc='What trains is float32 always.')

    @classmethod
    def add_cmdline_args(cls, parser, partial_opt=None):
        super().add_cmdline_args(parser, partial_opt)
        for group in (LLM, CHAT, METRICS):
            group.add_to(parser)
        set_training_defaults(parser)
        set_llm_of(parser, (partial_opt or {}).get('model_file'))
        return parser

    @staticmethod
    def dictionary_class():
        return TokenizerDictionary

    @classmethod
    def history_class(cls):
        return DialogueHistory

    # ---- construction ---------------------------------------------------------------------------------

    def __init__(self, opt, shared=None):
        self.progress: dict[str, Any] = {}  # of the training run, set by spt_parlai.training.resume
        self._replaying = False
        if shared is None:
            check_options(opt, GROUPS)
            if not self.trains and is_distributed():
                opt['ddp_backend'] = 'none'  # torch's wrapper refuses a model without parameters
            chosen_bert(
                opt.get('override') or {}
            )  # of this command; a teacher asks again, but after the LLM has loaded
            opt.setdefault('dict_file', None)  # ParlAI asks for it; a dictionary of ours has no such option
            path, self._is_finetune = self._get_init_model(opt, shared)
            self._loaded = (
                (path, files.load_states(path)) if path else (None, {})
            )  # a bad file is refused before the LLM loads
            if path:
                files.check_kind(path, self._loaded[1]['spt'], self.kind)
            opt['llm'] = hub.portable(opt['llm'])
            self._asked = {name: opt.get(name) for name in ('text_truncate', 'label_truncate')}
            opt['text_truncate'], opt['label_truncate'] = share_window(
                window_size(hub.load_config(opt['llm'], opt.get('llm_revision'))),
                opt.get('prompt_length', 0),
                opt.get('text_truncate') or opt.get('truncate'),
                opt.get('label_truncate') or opt.get('truncate'),
                opt['max_new_tokens'],
            )
            if self._seed(opt) is not None:
                seed_everything(self._seed(opt), get_rank())
        super().__init__(opt, shared)
        if shared:
            self.skip_generation = shared['skip_generation']

    @staticmethod
    def _seed(opt) -> int | None:
        """A chat repeats only when asked to; everything else repeats with the seed stored in the model."""
        return (opt.get('override') or {}).get('seed') if opt.get('interactive_mode') else opt.get('seed')

    context_of: ContextOf | None = None  # a method of agents that put text before the dialogue

    def build_history(self):
        return DialogueHistory(
            self.opt,
            persona_of_chat(self.opt, self.id),
            self.context_of,
            maxlen=self.text_truncate,
            size=self.histsz,
            dict_agent=self.dict,
        )

    def load_llm(self) -> CausalLM:
        opt = self.opt
        dtype, device = self._llm_dtype(), self._device()
        with naming('--llm-device-map', opt['llm_device_map']):
            placement = read_device_map(opt['llm_device_map'])
        with naming('--llm-quantization', opt['llm_quantization']):
            quantization = quantization_config(opt['llm_quantization'], dtype, device)
        with naming('--llm', opt['llm']):
            llm = load_llm(opt['llm'], opt.get('llm_revision'), dtype, device, placement, quantization)
        logging.info(f'--llm {opt["llm"]}: {llm.num_parameters:,} parameters, {llm.dtype}, on {llm.device}')
        if opt.get('fp16') and not self.use_cuda:
            logging.warning(f'--fp16 true is for GPUs: on this CPU the LLM runs in {llm.dtype} (see --llm-dtype).')
        if llm.dtype == torch.float16 and llm.device.type == 'cpu':
            logging.warning('float16 is slow on most CPUs; try --llm-dtype float32 or bfloat16 there.')
        self.use_loss_scaling(llm.dtype, llm.device)
        if opt['checkpoint_activations']:
            with naming(f'--llm {opt["llm"]} with --checkpoint-activations', 'true'):
                recompute_activations(llm, drops=opt.get('lora_dropout', 0.0) > 0)
        return llm

    def _should_initialize_optimizer(self) -> bool:
        return self.trains and super()._should_initialize_optimizer()

    def log_memory(self, llm: CausalLM, model: PromptedLM) -> None:
        """Before training: what a batch of middling ConvAI2 examples takes."""
        if self._should_initialize_optimizer():
            length = min(_USUAL_LENGTH, self.opt['text_truncate']) + model.soft_prompts.length
            targets = min(_USUAL_TARGET, self.opt['label_truncate']) * (_USUAL_TURNS if packs(self.opt) else 1)
            trained = sum(p.numel() for p in model.parameters())
            logging.info(
                training_memory(
                    llm,
                    self.opt['batchsize'],
                    model.prompt_chunk,
                    length,
                    targets,
                    trained,
                    self.opt['optimizer'],
                    examples_at_once=max(1, model.tokens_at_once // model.soft_prompts.num_prompts // length),
                )
            )

    def _device(self) -> torch.device:
        return torch.device('cuda', max(self.opt['gpu'], 0)) if self.use_cuda else torch.device('cpu')

    def _llm_dtype(self) -> str:
        """ParlAI's --fp16 true is a wish for speed: the LLM, and it alone, runs in half precision on a GPU."""
        if self.opt.get('fp16') and self.use_cuda and self.opt['llm_dtype'] == 'auto':
            return 'bfloat16' if torch.cuda.is_bf16_supported() else 'float16'
        return self.opt['llm_dtype']

    def set_interactive_mode(self, mode, shared=False):
        super().set_interactive_mode(mode, shared)
        self.skip_generation = not mode and bool(self.opt.get('skip_generation'))

    # ---- observations → batch -------------------------------------------------------------------------

    def observe(self, observation):
        check_message(observation)
        return super().observe(observation if 'episode_done' in observation else {**observation, 'episode_done': False})

    def _set_text_vec(self, obs, history, truncate):
        if obs.is_padding():
            return obs
        replies = obs.get('labels') or obs.get('eval_labels') or ()
        context = history.context(replies)
        obs.force_set('text_vec', torch.LongTensor(context.ids))
        obs.force_set('scored', context.scored)
        obs.force_set('full_text', context.text)
        obs.force_set('persona_text', ' '.join(history.dialogue.persona))
        obs.force_set(
            'full_text_vec', list(history.full_context(replies).ids) if self.beam_context_block_ngram > 0 else []
        )
        obs.force_set('context_original_length', context.length)
        obs.force_set('context_truncate_rate', context.length > len(context.ids))
        obs.force_set('context_truncated_length', context.length - len(context.ids))
        return obs

    def vectorize(self, obs, history, *args, text_truncate=None, label_truncate=None, **kwargs):
        if FIELD not in obs or obs.is_padding():
            return super().vectorize(
                obs, history, *args, text_truncate=text_truncate, label_truncate=label_truncate, **kwargs
            )
        turns = self._turns(obs[FIELD], label_truncate)
        obs.force_set('turns', turns)
        obs.force_set('text_vec', torch.LongTensor(turns[-1].context))  # the longest row: what ParlAI sorts batches by
        obs.force_set('labels_vec', torch.LongTensor(turns[-1].target))
        return obs

    def _turns(self, messages, label_truncate) -> list[Turn]:
        """A whole dialogue's labelled turns, each as it would be if ParlAI had told it message by message."""
        history = DialogueHistory(
            self.opt, context_of=self.context_of, maxlen=self.text_truncate, size=self.histsz, dict_agent=self.dict
        )
        turns = []
        for message in messages:
            history.update_history(message)
            if not message['labels']:
                continue
            label = message['labels'][0] if len(message['labels']) == 1 else random.choice(message['labels'])
            context = history.context(message['labels'])
            target, length, _ = self._vectorize_text_with_truncate_stats(label, truncate=label_truncate)
            turns.append(
                Turn(
                    list(context.ids),
                    target.tolist(),
                    context.text,
                    ' '.join(history.dialogue.persona),
                    context.length,
                    length,
                    context.scored,
                )
            )
            if self.opt.get('use_reply', 'label') == 'label':
                history.add_reply(label)
        return turns

    def reply_ids(self, text: str) -> list[int]:
        """A reply's token ids, without EOS."""
        return self.dict.txt2vec(text)

    def _vectorize_text_with_truncate_stats(
        self, text, add_start=False, add_end=False, truncate=None, truncate_left=True
    ):
        """A target: its tokens and EOS. EOS stays also where the target is cut (method: its loss always counts)."""
        ids = self.reply_ids(text)
        length = len(ids) + 1
        if truncate is not None:
            ids = ids[: truncate - 1]
        return torch.LongTensor([*ids, self.END_IDX]), length, length > len(ids) + 1

    def batchify(self, obs_batch, sort=False):
        batch = super().batchify(obs_batch, sort=sort)
        if batch.batchsize:
            valid = [obs_batch[i] for i in batch.valid_indices]
            if any('turns' in obs for obs in valid):
                self._pack(batch, valid)
            else:
                batch['texts'] = {
                    'context': [obs['full_text'] for obs in valid],
                    'persona': [obs['persona_text'] for obs in valid],
                }
                if valid[0]['scored'] is not None:
                    batch['scored_vec'] = padded([obs['scored'] for obs in valid], self.NULL_IDX)
        return batch

    def _pack(self, batch, observations) -> None:
        """Messages of one batch, some or all of them whole dialogues → a batch of turns."""
        dialogues = [
            obs['turns']
            if 'turns' in obs
            else [
                Turn(
                    obs['text_vec'].tolist(),
                    obs['labels_vec'].tolist(),
                    obs['full_text'],
                    obs['persona_text'],
                    obs['context_original_length'],
                    obs['label_original_length'],
                    obs['scored'],
                )
            ]
            for obs in observations
        ]
        pack_batch(batch, dialogues, self.NULL_IDX)
        turns = [turn for dialogue in dialogues for turn in dialogue]
        batch['texts'] = {'context': [t.text for t in turns], 'persona': [t.persona for t in turns]}
        batch['counts'] = turn_counts(dialogues)
        for name in (
            '_context_original_length',
            '_context_truncate_rate',
            '_context_truncated_length',
            '_label_original_length',
            '_label_truncate_rate',
            '_label_truncated_length',
        ):
            batch[name] = None  # ParlAI's, by message; `counts` has them by turn

    @classmethod
    def trains_anything(cls) -> bool:
        return cls.trains

    def get_progress(self) -> dict[str, Any]:
        return self.progress

    def set_progress(self, progress: dict[str, Any]) -> None:
        self.progress = progress

    def average_accumulated_gradients(self) -> None:
        average_accumulated_gradients(self)

    def skip_replies(self, skip: bool) -> None:
        self.skip_generation = skip

    def share(self):
        return {**super().share(), 'skip_generation': self.skip_generation}

    @contextlib.contextmanager
    def replaying(self):
        """Batches are drawn and observed but not trained on (see `spt_parlai.training.resume`)."""
        self._replaying = True
        try:
            yield
        finally:
            self._replaying = False

    def train_step(self, batch):
        if self._replaying:
            return None
        with accumulates_alone(self):
            return super().train_step(batch)

    # ---- replies --------------------------------------------------------------------------------------

    @property
    def bare_model(self) -> torch.nn.Module:
        """The model without the wrapper that distributed training puts around it."""
        return getattr(self.model, 'module', self.model)

    def _encoder_input(self, batch):
        return (batch.text_vec,)

    searches_batches = (
        True  # one search for all rows where it finds what ParlAI's finds; tests switch it off to compare
    )

    def _generate(self, batch, beam_size, max_ts, prefix_tokens=None):
        max_ts = min(max_ts, self.opt['max_new_tokens'])
        with memory_errors_explained('replying'):
            found = search_batch(self, batch, max_ts) if self.searches_batches and prefix_tokens is None else None
            if found is None:
                return super()._generate(batch, beam_size, max_ts, prefix_tokens)
        return [reply.get_rescored_finished()[0] for reply in found], found

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


class PromptedAgent(LLMAgent):
    """An agent whose model is an `PromptedLM` of one prompt, if not more."""

    objective = SptObjective(lambda_selection=0.0, lambda_contrastive=0.0, lambda_fusion=0.0)

    # ---- what a subclass says -------------------------------------------------------------------------

    def build_prompts(self, llm: CausalLM) -> SoftPromptGroup:
        """The soft prompts [K, L, D] before they are trained; K = 1, L = 0: none."""
        return SoftPromptGroup.none(llm.hidden_size)

    def build_retriever(self, llm: CausalLM) -> Retriever | None:
        """What scores them; None where there is nothing to choose."""
        return None

    def tune(self, llm: CausalLM) -> torch.nn.Module | None:
        """Let weights of the LLM train; returns the module that owns them."""
        return None

    def model_options(self) -> dict[str, Any]:
        """Further arguments of `PromptedLM`."""
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
        yield from loss_metrics(losses)

    # ---- the model ------------------------------------------------------------------------------------

    def build_model(self) -> PromptedLM:
        llm = self.load_llm()
        model = PromptedLM(
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
            with naming(f'--llm {self.opt["llm"]} with --llm-compile', 'true'):
                compile_layers(llm)
        self.description = files.describe(self.opt, llm, model, self.kind, self.describe_tuning())
        return model

    def _encoder_input(self, batch):
        return (batch.text_vec, batch.get('scored_vec'), batch.get('selection'))

    def compute_loss(self, batch, return_output=False):
        """The loss of a batch, a float32 scalar; metrics are recorded per example.

        :raises UsageError: in evaluation, for a loss that is not finite; in training that step is skipped.
        """
        if batch.label_vec is None:
            raise ValueError('Cannot compute loss without a label.')
        prediction = self.model(
            batch.text_vec,
            batch.label_vec,
            row=batch.get('row'),
            context_length=batch.get('context_length'),
            scored=batch.get('scored_vec'),
            selection=batch.get('selection'),
            token_loss=self.objective.token_loss,
            gradient_scale=self.loss_scale,
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
