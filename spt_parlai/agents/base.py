"""The base class of all agents around an LLM: a ParlAI generator that may put soft prompts before the context.

The file follows an example: how the agent is built, how observations become a batch, how a batch becomes a loss and an
update, how a context becomes a reply, and what is saved. ParlAI's methods hand much of the work to three parts: a
`Batcher`, a `Persistence` and an `Optimization`.

A subclass declares what it adds in class attributes and small methods, which stand first. The base class adds nothing:
it is the frozen LLM alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from parlai.core.metrics import GlobalAverageMetric, Metric, SumMetric
from parlai.core.torch_generator_agent import TorchGeneratorAgent
from parlai.utils.distributed import get_rank, is_distributed
from parlai.utils.misc import warn_once
from torch import Tensor, nn

from spt_parlai import hub
from spt_parlai.agents import chat_commands, persistence
from spt_parlai.agents.batching import Batcher, TurnExample, by_message, share_window, window_size
from spt_parlai.agents.generation import (
    FoundReply,
    Prefixes,
    blocked_context,
    ending_replies,
    found_replies,
    rank_candidates,
    replies_from,
    search_like,
)
from spt_parlai.agents.llm import load, log_memory, what_would_fit
from spt_parlai.agents.look_ahead import predict_ahead, replies_ahead
from spt_parlai.agents.optimization import (
    Optimization,
    accumulate_without_sync,
    first_not_finite,
    memory_errors_explained,
)
from spt_parlai.agents.persistence import Persistence
from spt_parlai.agents.persona import announce, persona_of_chat
from spt_parlai.agents.ranked_replies import CANDIDATES, ranked_replies
from spt_parlai.checkpoints.files import damage_explained, describe
from spt_parlai.dialogue.dictionary import TokenizerDictionary
from spt_parlai.dialogue.episode import EPISODE, Episode
from spt_parlai.dialogue.history import ContextOf, DialogueHistory
from spt_parlai.dialogue.instruction import END_OF_TURN, first_turn_of, is_past_first_turn
from spt_parlai.dialogue.messages import check_message, well_formed
from spt_parlai.dialogue.mutator import FIELD
from spt_parlai.dialogue.thoughts import CLOSE, OPEN, without_thoughts
from spt_parlai.errors import UsageError, naming
from spt_parlai.metrics.batch import loss_metrics, prediction_metrics
from spt_parlai.model.causal_lm import SHAPE_KEYS, CausalLM
from spt_parlai.model.context_states import ContextStates
from spt_parlai.model.decoding import Search, greedy
from spt_parlai.model.layer_execution import compile_layers
from spt_parlai.model.prompted_lm import Prediction, PromptedLM, TokenLoss
from spt_parlai.model.retriever import Retriever
from spt_parlai.model.sharding import run_along
from spt_parlai.model.soft_prompts import SoftPromptGroup
from spt_parlai.objective import Losses, SptObjective
from spt_parlai.options.declare import OptionGroup
from spt_parlai.options.groups import CHAT, LLM, METRICS, set_llm_of, set_training_defaults
from spt_parlai.options.parlai_options import check_parlai_options
from spt_parlai.options.validate import check_options, chosen_bert
from spt_parlai.training.distributed import average_gradients
from spt_parlai.training.seeding import seed_everything

_SAMPLING = ('topk', 'nucleus', 'factual_nucleus')  # values of --inference with which a reply is drawn, not searched


class LLMAgent(TorchGeneratorAgent):
    """A ParlAI generator around a Hugging Face LLM, which is frozen unless `tune` lets some of its weights train."""

    # ---- what a subclass declares ---------------------------------------------------------------------

    kind: str  # the agent's name in its model files; it reads no others
    trains = True  # whether there is anything to train
    options: tuple[OptionGroup, ...] = (LLM, CANDIDATES, CHAT, METRICS)
    defaults: dict[str, Any] = {}  # the agent's own defaults for options of ParlAI's
    objective = SptObjective(lambda_selection=0.0, lambda_contrastive=0.0, lambda_fusion=0.0)
    llm_dtype: str | None = None  # the LLM's dtype, if the agent decides it instead of --llm-dtype
    context_of: ContextOf | None = None  # a method, in agents that put text before the dialogue
    context_is_foreseen = True  # whether a context depends on its dialogue alone, and begins with the one before it

    def build_prompts(self, llm: CausalLM) -> SoftPromptGroup:
        """Return the untrained soft prompts [K, L, D]. The base class has none: K = 1 and L = 0."""
        return SoftPromptGroup.none(llm.hidden_size)

    def build_retriever(self, llm: CausalLM) -> Retriever | None:
        """Return the retriever (eq. 1), or None if there is only one prompt."""
        return None

    def tune(self, llm: CausalLM) -> nn.Module | None:
        """Let weights of the LLM train and return the module that registers them, or None if all stay frozen."""
        return None

    def model_options(self) -> dict[str, Any]:
        """Return further arguments of `PromptedLM`."""
        return {}

    def describe_tuning(self) -> dict[str, Any]:
        """Return option → value for what must agree with a model file, apart from the LLM and the prompts."""
        return {}

    def tuning_asked_for(self, opt) -> dict[str, Any]:
        """Return those entries of `describe_tuning` that the options alone decide, before the LLM is loaded."""
        return {}

    def reply_ids(self, text: str) -> list[int]:
        """Return a reply's token ids, without EOS."""
        return self.dict.txt2vec(text)

    def parameter_groups(self, params: Sequence[Tensor]) -> list:
        """Return what the optimizer is given: the trained tensors, or groups of them with options of their own."""
        return [*params]

    def losses(self, batch, prediction: Prediction) -> Losses:
        """Return the terms of the loss (eq. 6); in the base class the prompt NLL alone (eq. 2)."""
        return self.objective(
            prediction.log_probs, prediction.scores, prediction.example, None, token_loss=prediction.token_loss
        )

    def metrics_of(self, prediction: Prediction, losses: Losses) -> dict[str, list[Metric]]:
        """Return name → one metric for each example. ParlAI's own metrics are those under the selected prompt."""
        own = prediction_metrics(
            prediction.log_probs, prediction.greedy, prediction.targets, prediction.example, prediction.selected
        )
        return {**own, **loss_metrics(losses)}

    # ---- construction ---------------------------------------------------------------------------------

    fp16 = property(lambda self: False, lambda self, value: None, doc='False: what trains always stays float32.')

    @classmethod
    def add_cmdline_args(cls, parser, partial_opt=None):
        super().add_cmdline_args(parser, partial_opt)
        for group in cls.options:
            group.add_to(parser)
        set_training_defaults(parser, cls.defaults)
        set_llm_of(parser, (partial_opt or {}).get('model_file'))
        return parser

    @classmethod
    def upgrade_opt(cls, opt_from_disk):
        """Add the defaults of options that a model file of an older version, or a stripped one, does not have."""
        opt = super().upgrade_opt(opt_from_disk)
        for option in (option for group in cls.options for option in group.options):
            opt.setdefault(option.name, option.default)
        return opt

    @staticmethod
    def dictionary_class():
        return TokenizerDictionary

    def __init__(self, opt, shared=None):
        self._progress: dict[str, Any] = {}
        self._replaying = False
        self._prefixes: Prefixes | None = None
        if shared is None:
            self._prepare(opt)
        else:
            self.persistence, self.optimization, self.draw_seed = shared['parts']
        super().__init__(opt, shared)
        if shared is not None:
            self.skip_generation = shared['skip_generation']
        self.batcher = Batcher(
            self.reply_ids, self._new_history, self.END_IDX, self.NULL_IDX, opt.get('use_reply', 'label') == 'label'
        )

    def _prepare(self, opt) -> None:
        """Check everything that can be checked before the LLM loads, and build the parts that need no LLM.

        :raises UsageError: for an option or a model file that cannot work.
        """
        check_parlai_options(opt)
        check_options(opt, self.options)
        if not self.trains and is_distributed():
            opt['ddp_backend'] = 'none'  # torch's wrapper refuses a model without parameters
        chosen_bert(opt.get('override') or {})  # the teacher checks it, too, but after the LLM has loaded
        opt.setdefault('dict_file', None)  # ParlAI reads this option, which our dictionary does not declare
        path, self._is_finetune = self._get_init_model(opt, None)
        self.persistence = Persistence(path, self.kind)
        self.optimization = Optimization(opt['max_skipped_steps'], opt.get('model_file'))
        opt['llm'] = hub.portable(opt['llm'])
        config = hub.load_config(opt['llm'], opt.get('llm_revision'))
        self.persistence.check(self._description_asked_for(opt, config))
        self._asked = {name: opt.get(name) for name in ('text_truncate', 'label_truncate')}
        opt['text_truncate'], opt['label_truncate'] = share_window(
            window_size(config),
            opt.get('prompt_length', 0),
            opt.get('text_truncate') or opt.get('truncate'),
            opt.get('label_truncate') or opt.get('truncate'),
            opt['max_new_tokens'],
        )
        # A chat is repeatable only with a --seed of its own; all else uses the seed that the model file stores.
        seed = (opt.get('override') or {}).get('seed') if opt.get('interactive_mode') else opt.get('seed')
        if seed is not None:
            seed_everything(seed, get_rank())
        self.draw_seed = torch.initial_seed() if seed is None else seed

    def _description_asked_for(self, opt, config) -> dict[str, Any]:
        """What the options say of the description of the model that will be built (`checkpoints.files.describe`)."""
        declared = {option.name for group in self.options for option in group.options}
        shape: dict[str, Any] = {name: opt[name] for name in ('num_prompts', 'prompt_length') if name in declared}
        fingerprint = {key: getattr(config, key, None) for key in SHAPE_KEYS}
        return {'llm': opt['llm'], 'fingerprint': fingerprint, **shape, 'tuning': self.tuning_asked_for(opt)}

    def share(self):
        return {
            **super().share(),
            'parts': (self.persistence, self.optimization, self.draw_seed),
            'skip_generation': self.skip_generation,
        }

    def build_model(self) -> PromptedLM:
        """Load the LLM and put the soft prompts and the retriever around it.

        :raises UsageError: for an LLM that cannot be loaded, or that the method does not work with.
        """
        opt = self.opt
        llm = load(opt, self.use_cuda, self.llm_dtype)
        self.optimization.scale_losses_for(llm.dtype, llm.device)
        model = PromptedLM(
            llm,
            self.build_prompts(llm),
            self.build_retriever(llm),
            self.NULL_IDX,
            self.START_IDX,
            self.END_IDX,
            other_ends=self.dict.other_ends(llm.end_ids),
            end_temperature=self.temperature if opt.get('inference') in _SAMPLING else 0.0,
            tuned=self.tune(llm),
            tokens_at_once=opt['tokens_at_once'],
            **self.model_options(),
        )
        if self._should_initialize_optimizer():
            log_memory(opt, llm, model)
            if opt['llm_compile']:
                with naming(f'--llm {opt["llm"]} with --llm-compile', 'true'):
                    compile_layers(llm)
        self.persistence.description = describe(
            llm, model, opt['llm'], opt.get('llm_revision'), opt.get('seed'), self.kind, self.describe_tuning()
        )
        return model

    def _should_initialize_optimizer(self) -> bool:
        return self.trains and super()._should_initialize_optimizer()

    @property
    def bare_model(self) -> PromptedLM:
        """The model without the wrapper that distributed training puts around it."""
        model: Any = self.model
        return getattr(model, 'module', model)

    def build_dictionary(self):
        """Return the LLM's tokenizer as a dictionary.

        :raises UsageError: if the tokenizer cannot be used, or has fewer tokens than `--verbose-topk`.
        """
        dictionary = super().build_dictionary()
        k = self.opt.get('verbose_topk', -1)
        if k > len(dictionary):
            raise UsageError(f'--verbose-topk {k}: the LLM has {len(dictionary)} tokens; give at most that number.')
        return dictionary

    def set_interactive_mode(self, mode, shared=False):
        super().set_interactive_mode(mode, shared)
        self.skip_generation = not mode and bool(self.opt.get('skip_generation'))

    def chat_command(self, line: str) -> str | None:
        """Obey a line that a person types in a chat; returns what to print, or None if the line is a message."""
        return chat_commands.obey(self, line)

    def announce_persona(self) -> None:
        """Print the persona that a chat gave this agent, under its name, if it gave one."""
        if self.history.given_persona:
            announce(self.id, self.history.given_persona)

    # ---- observations → batch -------------------------------------------------------------------------

    def build_history(self):
        return self._new_history(persona_of_chat(self.opt, self.id))

    def _new_history(self, persona=()) -> DialogueHistory:
        return DialogueHistory(
            self.opt, persona, self.context_of, maxlen=self.text_truncate, size=self.histsz, dict_agent=self.dict
        )

    def observe(self, observation):
        """Check a message and add it to the dialogue. Without `episode_done` the episode goes on."""
        check_message(observation)
        episode = getattr(observation, EPISODE, None)
        observation = well_formed(observation)
        if episode is not None and self._looks_ahead():
            observation = {**observation, EPISODE: episode}
        return super().observe(observation if 'episode_done' in observation else {**observation, 'episode_done': False})

    def _looks_ahead(self) -> bool:
        """Whether evaluation predicts whole dialogues: contexts hold the labels, and neither draw nor retrieve."""
        opt = self.opt
        said = opt.get('use_reply', 'label') == 'label'
        return opt['dialogue_packing'] and said and self.context_is_foreseen and not opt.get('score_noise')

    def vectorize(self, obs, history, *args, label_truncate=None, **kwargs):
        """Add token ids to a message; one that carries a whole dialogue gets an example for each turn."""
        if FIELD not in obs or obs.is_padding():
            return super().vectorize(obs, history, *args, label_truncate=label_truncate, **kwargs)
        self.batcher.add_turns(obs, obs[FIELD], label_truncate)
        return obs

    def _set_text_vec(self, obs, history, truncate):
        if not obs.is_padding():
            self.batcher.add_context(obs, history, with_full_context=self.beam_context_block_ngram > 0)
        return obs

    def _vectorize_text_with_truncate_stats(
        self, text, add_start=False, add_end=False, truncate=None, truncate_left=True
    ):
        ids, length = self.batcher.target(text, truncate)
        return torch.LongTensor(ids), length, length > len(ids)

    def batchify(self, obs_batch, sort=False):
        batch = super().batchify(obs_batch, sort=sort)
        if batch.batchsize:
            self.batcher.complete(batch, [obs_batch[i] for i in batch.valid_indices])
        return batch

    # ---- batch → loss → update ------------------------------------------------------------------------

    def train_step(self, batch):
        """Train on a batch, unless a resumed run replays the data."""
        if self._replaying:
            return
        fits = partial(what_would_fit, self.opt, self.bare_model.llm)
        with memory_errors_explained('training', 'prompt_chunk' in self.opt, fits):
            with accumulate_without_sync(self.model, self._number_grad_accum, self.opt.get('update_freq', 1)):
                super().train_step(batch)

    def compute_loss(self, batch, return_output=False):
        """Compute the loss of a batch, a float32 scalar, and record its metrics for each example.

        :raises UsageError: in evaluation, for a loss that is not finite; in training that step is skipped.
        """
        if batch.label_vec is None:
            raise ValueError('Cannot compute loss without a label.')
        prediction = None
        if 'episodes' in batch and 'selection' in batch:
            replies = self._greedy_replies()
            prediction = predict_ahead(batch, batch.selection, self._turns_ahead, self._predict, self.NULL_IDX, replies)
        if prediction is None:
            prediction = self._predict(batch)
        losses = self.losses(batch, prediction)
        if torch.isfinite(losses.total):
            self._record(batch, prediction, losses)
        elif not batch.is_training:
            raise self._nothing_to_evaluate()
        return (losses.total, (self._label_logits(batch), prediction)) if return_output else losses.total

    def token_loss(self, batch) -> TokenLoss:
        """Return the part of the loss that depends on log-probabilities."""
        return self.objective.token_loss

    def _predict(self, batch) -> Prediction:
        return self.model(
            batch.text_vec,
            batch.label_vec,
            row=batch.get('row'),
            context_length=batch.get('context_length'),
            scored=batch.get('scored_vec'),
            selection=batch.get('selection'),
            token_loss=self.token_loss(batch),
            gradient_scale=self.optimization.loss_scale,
            keep_states=bool(batch.get('keep_states')),
        )

    def _turns_ahead(self, episode: Episode) -> list[TurnExample]:
        """Return the examples of an episode; none if labels are drawn, because looking ahead must not draw them."""
        drawn = any(len(turn['labels'] or ()) > 1 for turn in episode.turns)
        return [] if drawn else self.batcher.examples(well_formed(episode.turns), self.label_truncate)

    def _record(self, batch, prediction: Prediction, losses: Losses) -> None:
        metrics = self.metrics_of(prediction, losses)
        if 'message' in batch:  # its examples are turns, and ParlAI counts messages
            metrics = {**batch.counts, **by_message(metrics, batch.message)}
        for name, values in metrics.items():
            self.record_local_metric(name, values)

    def backward(self, loss, **kwargs):
        run_along()  # torch averages the gradients within
        super().backward(self.optimization.scaled(loss), **kwargs)

    def update_params(self):
        """Make an optimizer step, or skip it if a gradient is not finite.

        :raises UsageError: after too many skipped steps in a row.
        """
        if self._number_grad_accum != 0:  # in the middle of an update (--update-freq)
            return
        scaler = self.optimization.scaler
        if scaler is not None:
            self.global_metrics.add('loss_scale', GlobalAverageMetric(scaler.get_scale()))
        if self.optimization.gradients_are_finite(self.optimizer, self.model.parameters()):
            self.optimization.step_made()
            super().update_params()
        else:
            self.optimizer.zero_grad()
            self.global_metrics.add('skipped_steps', SumMetric(1))
            self.optimization.step_skipped(self._number_training_updates)
        if scaler is not None:
            scaler.update()

    def _nothing_to_evaluate(self) -> UsageError:
        """Return the error for a loss that is not finite: training has diverged, or the dtype is at fault."""
        model = self.bare_model
        name = first_not_finite(model, getattr(self, 'optimizer', None))
        if name:
            return UsageError(f'nothing to evaluate: {self.optimization.diverged(name)}')
        largest = max((float(p.detach().abs().max()) for p in model.parameters()), default=0.0)
        return UsageError(
            f'--llm {self.opt["llm"]} in {model.llm.dtype} gives a loss that is not finite (the largest trained value '
            f'is {largest:.1e}); run it in --llm-dtype bfloat16 or float32, or train with a lower --learningrate.'
        )

    # ---- context → reply ------------------------------------------------------------------------------

    _thinks = False  # whether the context ends inside a think block
    marks: Sequence[str] = END_OF_TURN  # where the LLM has gone on to another turn; a chat template has no such marks
    searches_batches = True  # one search for all rows where it finds what ParlAI's search finds; tests compare them

    def eval_step(self, batch):
        """Evaluate a batch, for which the retriever selects the prompts once."""
        if batch.text_vec is None:
            return None
        scored = batch.get('scored_vec')
        batch['selection'] = self.bare_model.retrieve(batch.text_vec if scored is None else scored)
        batch['draws_candidates'] = self.opt['candidates_per_prompt'] > 0
        output = super().eval_step(batch)
        if output is not None and 'candidates' in batch:
            output.candidates = batch['candidates']
        return output

    @property
    def stops_at_next_speaker(self) -> bool:
        """Whether replies end before the next speaker's mark (`--stop-at-next-speaker`)."""
        asked = self.opt['stop_at_next_speaker']
        if asked != 'auto':
            return asked == 'true'
        return bool(self.opt.get('interactive_mode') or self.opt.get('shows_replies'))

    def _is_past_reply(self, ids: Sequence[int]) -> bool:
        """Whether generated tokens contain a mark of the next speaker, after what the LLM has thought."""
        return is_past_first_turn(self._said(ids)[1], self.marks)

    def _treesearch_factory(self, device, verbose=False):
        search = super()._treesearch_factory(device, verbose)
        return ending_replies(search, self._is_past_reply) if self.stops_at_next_speaker else search

    def _encoder_input(self, batch):
        return batch.text_vec, batch.get('scored_vec'), batch.get('selection')

    def _generate(self, batch, beam_size, max_ts, prefix_tokens=None):
        """Find a reply for every example; returns what ParlAI's method returns.

        A reply begins with its own row of `prefix_tokens`, int64 [B, P], right-padded with negative ids. (In ParlAI's
        method it may begin with any prefix of the batch, and padding counts as a token.)
        """
        max_ts = min(max_ts, self.opt['max_new_tokens'])
        with memory_errors_explained('replying'):
            search = self._batch_search(max_ts) if prefix_tokens is None else None
            if search is not None and batch.get('draws_candidates'):
                ranked = ranked_replies(self, batch, search)
                batch['candidates'] = [replies.log() for replies in ranked]
                return [replies.get_rescored_finished(1)[0] for replies in ranked], ranked
            if search is not None:
                found = replies_ahead(batch, batch.selection) if 'episodes' in batch else None
                if found is None:
                    encoded = self.bare_model.encoder(*self._encoder_input(batch))
                    context = self._get_batch_context(batch).to(encoded.logits.device)
                    found = found_replies(search(self.bare_model, encoded, context), self._length_penalty)
                return [reply.get_rescored_finished()[0] for reply in found], found
            self._prefixes = None if prefix_tokens is None else Prefixes(prefix_tokens)
            try:
                return super()._generate(batch, beam_size, max_ts)
            finally:
                self._prefixes = None

    @property
    def _length_penalty(self) -> float:
        return self.opt.get('beam_length_penalty', 0.65)

    def _batch_search(self, max_ts: int) -> Search | None:
        """Return the search for a whole batch, or None where only ParlAI's own finds what ParlAI's finds."""
        if not self.searches_batches or hasattr(self, '_rerank_beams'):
            return None
        like = self._treesearch_factory(self.bare_model.llm.device, verbose=self.show_token_details)
        stops = self._is_past_reply if self.stops_at_next_speaker else None
        return search_like(like.set_block_list(self.beam_block_list), self.temperature, max_ts, stops)

    def _greedy_replies(self) -> Callable[[ContextStates], list[FoundReply]] | None:
        """Return what finds the replies to all turns of dialogues at once; None if they are not asked for, are drawn,
        or depend on more than their contexts' tokens."""
        if self.skip_generation or self.opt['candidates_per_prompt'] > 0:
            return None
        search = self._batch_search(min(self.label_truncate or 256, self.opt['max_new_tokens']))
        if search is None or search.choose is not greedy or search.context_block_ngram > 0:
            return None

        def reply(states: ContextStates) -> list[FoundReply]:
            with memory_errors_explained('replying'):
                return replies_from(states, self.bare_model, search, self._length_penalty)

        return reply

    def _generation_activation(self, score: Tensor) -> Tensor:
        log_probs = super()._generation_activation(score)
        return log_probs if self._prefixes is None else self._prefixes.force(log_probs)

    def _get_batch_context(self, batch):
        return blocked_context(super()._get_batch_context(batch))

    def _v2t(self, vector) -> str:
        """Return the text of a reply, without what the LLM thought before it."""
        text, reply = self._said(vector)
        if text.strip() and not reply.strip():
            warn_once(
                f'--llm {self.opt["llm"]}: a reply is empty, because the LLM was still thinking at its end; raise '
                '--max-new-tokens, or let it not think.'
            )
        return first_turn_of(reply, self.marks if self.stops_at_next_speaker else ())

    def _said(self, vector) -> tuple[str, str]:
        """Return the text that the LLM has generated, and its part after the thoughts at its beginning."""
        ids, thinks = [int(i) for i in vector], self._thinks
        ids = ids[: ids.index(self.END_IDX)] if self.END_IDX in ids else ids
        added = self.dict.tokenizer.added_tokens_encoder
        opening, closing = added.get(OPEN), added.get(CLOSE)  # these may be special tokens, which no text shows
        if closing in ids:
            ids, thinks = ids[ids.index(closing) + 1 :], False
        elif opening in ids:
            thinks = thinks or not self.dict.vec2txt(ids[: ids.index(opening)])
        text = self.dict.decode(ids)
        return text, without_thoughts(text, thinks)

    def rank_eval_label_candidates(self, batch, batchsize):
        """Rank candidates by their NLL per token under the selected prompt, best first. A task may have none."""
        if batch.candidate_vecs is None:
            return None, None
        candidates = [self._pad_tensor(ids, is_label=True)[0] for ids in batch.candidate_vecs[:batchsize]]
        ranked = rank_candidates(self.bare_model, self.bare_model.encoder(*self._encoder_input(batch)), candidates)
        texts = [[batch.candidates[i][o] for o in order] for i, (order, _) in enumerate(ranked)]
        return texts, [losses for _, losses in ranked]

    def _label_logits(self, batch) -> Tensor | None:
        """Return the labels' logits [B, U, V] under the selected prompt if `--verbose-topk` asks for some of them.

        The loss never holds all of them at once, so they are computed here, for that option only.
        """
        if not self.show_token_details or self.opt['verbose_topk'] < 1:
            return None
        encoded = self.bare_model.encoder(*self._encoder_input(batch))
        return self.bare_model.decode_forced(encoded, batch.label_vec)[0].float()

    def _construct_label_token_losses(self, labels, model_output):
        """Return (token, loss under the selected prompt) pairs of each example, for `--verbose`."""
        prediction = model_output[1]
        losses: list[list[tuple[str, float]]] = [[] for _ in labels]
        for i, (n, token) in enumerate(zip(prediction.example.tolist(), prediction.targets.tolist(), strict=True)):
            losses[n].append((self.dict[token], -float(prediction.log_probs[prediction.selected[n], i])))
        return losses

    # ---- the model file -------------------------------------------------------------------------------

    def state_dict(self):
        """Return the content of a checkpoint; see `checkpoints.schema` for its entries."""
        states = {**super().state_dict(), 'spt': self.persistence.description, 'progress': self._progress}
        if self._number_grad_accum:  # in the middle of an update (--update-freq)
            states['accumulated'] = persistence.accumulated(self._number_grad_accum, [*self.bare_model.parameters()])
        if self.optimization.scaler is not None:
            states['loss_scale'] = self.optimization.scaler.state_dict()
        return states

    def save(self, path=None):
        """Write the model file, its options and its dictionary.

        :raises UsageError: for a tensor that is not finite, or a file that cannot be written.
        """
        path = path or self.opt.get('model_file')
        if path:
            self.optimization.check_finite(path, self.bare_model, getattr(self, 'optimizer', None))
            # save the limits that the user gave, not those that this LLM's window made of them
            self.persistence.write(path, {**self.opt, **self._asked}, self.dict, self.state_dict())

    def read_states(self, path: str) -> dict[str, Any]:
        """Return the states of a model file, which must fit this agent.

        :raises UsageError: if it does not fit.
        """
        return self.persistence.read(path)

    def load(self, path):
        """Restore the trained tensors, the optimizer and the progress of the run from a model file.

        :raises UsageError: for a file that is damaged or does not fit.
        """
        states = self.read_states(path)
        self.persistence.restore_tensors(self.load_state_dict, states['model'])
        if 'optimizer' in states and hasattr(self, 'optimizer'):
            with damage_explained(path), contextlib.suppress(ValueError):  # another optimizer starts anew
                self.optimizer.load_state_dict(states['optimizer'])
        self._progress = states.get('progress', {})
        if self.optimization.scaler is not None and states.get('loss_scale'):
            self.persistence.restore_loss_scale(self.optimization.scaler, states)
        if 'accumulated' in states and not self._is_finetune:
            parameters = [*self.model.parameters()]
            self._number_grad_accum = persistence.restore_accumulated(states['accumulated'], parameters)
        return states

    def init_optim(self, params, optim_states=None, saved_optim_type=None, is_finetune=False):
        """Build the optimizer. A saved state is tried on copies of the parameters first.

        :raises UsageError: for a saved state that is damaged.
        """
        init_optim = super().init_optim

        def build(params, *args):
            return init_optim(self.parameter_groups(params), *args)

        if optim_states and not is_finetune:

            def built(copies, states):
                build(copies, states, saved_optim_type)
                return self.optimizer

            self.persistence.check_optimizer(built, params, optim_states)
        return build(params, optim_states, saved_optim_type, is_finetune)

    def build_lr_scheduler(self, states=None, hard_reset=False):
        """Build the schedulers; a resumed run keeps its learning rates. (ParlAI moves them as the first step would.)"""
        if not states or hard_reset:
            super().build_lr_scheduler(states, hard_reset)
            return
        super().build_lr_scheduler()  # an error here comes from the options, not from the file
        same = self.scheduler and states.get('lr_scheduler_type') == self.opt['lr_scheduler']
        if same and 'lr_scheduler' in states:
            self.persistence.check_scheduler(self.scheduler, states)
        with damage_explained(self.persistence.path):
            super().build_lr_scheduler(states)
            if same or not self.scheduler:  # another schedule starts anew
                groups = states.get('optimizer', {}).get('param_groups', ())
                persistence.keep_learning_rates(self.optimizer, groups)

    # ---- what the training hooks call (`training.resume.ResumableAgent`) -----------------------------

    @classmethod
    def trains_anything(cls) -> bool:
        return cls.trains

    @contextlib.contextmanager
    def replaying(self):
        """Within this context, draw and observe batches without training on them."""
        self._replaying = True
        try:
            yield
        finally:
            self._replaying = False

    def get_progress(self) -> dict[str, Any]:
        return self._progress

    def set_progress(self, progress: dict[str, Any]) -> None:
        self._progress = progress

    def average_accumulated_gradients(self) -> None:
        if self._number_grad_accum:
            average_gradients(self.model.parameters())

    def skip_replies(self, skip: bool) -> None:
        self.skip_generation = skip
