"""What an agent writes into its files, and how it takes it back.

What ParlAI promises of a generator and its own base class does not keep, each for the reason at its method.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from parlai.utils.torch import neginf
from torch import Tensor

from spt_parlai.checkpoints import files
from spt_parlai.checkpoints.schema import check_fits
from spt_parlai.dialogue.mutator import MUTATOR
from spt_parlai.errors import UsageError

# of this run alone: with the last two, ParlAI would load the checkpoint that a run was resumed from instead of its best model
_NOT_SAVED = ('init_model', 'load_from_checkpoint')


class SavedAgent:
    """A mixin before ParlAI's TorchAgent. `self.description` says what LLM and shapes the trained tensors belong to."""

    _loaded: tuple[Any, dict] = (None, {})  # (path, states) of a checkpoint that was read before the LLM was
    _came_from: Any = None  # the checkpoint that was loaded

    @property
    def loads_model(self) -> bool:
        """Will what is built be overwritten by a checkpoint?"""
        return self._loaded[0] is not None

    def state_dict(self):
        states = {**super().state_dict(), 'spt': self.description, 'progress': self.progress}
        if self._number_grad_accum:  # in the middle of an update (--update-freq)
            states['accumulated'] = {
                'batches': self._number_grad_accum,
                'gradients': [p.grad for p in self.bare_model.parameters()],
            }
        if self.scaler is not None:
            states['loss_scale'] = self.scaler.state_dict()
        return states

    def save(self, path=None):
        """Options first, then the files, each whole or not at all."""
        path = self.opt.get('model_file') if path is None else path
        if path:
            self.check_finite(path)
            options = {**self.opt, **self._asked}  # the limits that were asked for, not what this window made of them
            if options.get('mutators') == MUTATOR:  # set by the training loop, for its own data
                del options['mutators']
            files.save_json({k: v for k, v in options.items() if k not in _NOT_SAVED}, f'{path}.opt')
            self.dict.save(f'{path}.dict')
            files.save_states(self.state_dict(), path)

    def init_optim(self, params, optim_states=None, saved_optim_type=None, is_finetune=False):
        """ParlAI's, after a trial on copies: a damaged state may load and fail only in the first step."""
        if optim_states and not is_finetune:
            with files.damage_explained(self._came_from):
                copies = [parameter.detach().clone().requires_grad_() for parameter in params]
                super().init_optim(copies, copy.deepcopy(optim_states), saved_optim_type)
                for parameter in copies:
                    parameter.grad = torch.zeros_like(parameter)
                self.optimizer.step()
        return super().init_optim(params, optim_states, saved_optim_type, is_finetune)

    def load(self, path):
        states = self._loaded[1] if path == self._loaded[0] else files.load_states(path)
        self._loaded, self._came_from = (None, {}), path
        files.check_match(path, states['spt'], self.description)
        try:
            self.load_state_dict(states['model'])
        except RuntimeError as error:
            raise UsageError(f'{path} is damaged ({" ".join(str(error).split())}); restore it from a copy.') from error
        if 'optimizer' in states and hasattr(self, 'optimizer'):
            with files.damage_explained(path), contextlib.suppress(ValueError):  # another optimizer starts anew
                self.optimizer.load_state_dict(states['optimizer'])
        self.progress = states.get('progress', {})
        if self.scaler is not None and states.get('loss_scale'):
            with files.damage_explained(path):
                check_fits(states['loss_scale'], self.scaler.state_dict(), 'its loss_scale')
                self.scaler.load_state_dict(states['loss_scale'])
        if 'accumulated' in states and not self._is_finetune:
            self._number_grad_accum = states['accumulated']['batches']
            for parameter, gradient in zip(self.model.parameters(), states['accumulated']['gradients'], strict=True):
                parameter.grad = None if gradient is None else gradient.to(parameter.device)
        return states


class KeptPromises:
    """A mixin before ParlAI's TorchGeneratorAgent."""

    _prefix: Tensor | None = None
    _decoding_step = 0

    # ---- learning rate --------------------------------------------------------------------------------

    def build_lr_scheduler(self, states=None, hard_reset=False):
        """Building torch's schedulers moves the learning rates as the first step of all would; a resumed run has its own."""
        if not states or hard_reset:
            return super().build_lr_scheduler(states, hard_reset)
        super().build_lr_scheduler()  # what is wrong here is the options' fault
        with files.damage_explained(self._came_from):
            same = self.scheduler and states.get('lr_scheduler_type') == self.opt['lr_scheduler']
            if same and 'lr_scheduler' in states:
                check_fits(states['lr_scheduler'], self.scheduler.get_state_dict(), 'its lr_scheduler')
                check_fits(
                    states.get('warmup_scheduler') or {},
                    self.scheduler.get_warmup_state_dict() or {},
                    'its warmup_scheduler',
                )
            super().build_lr_scheduler(states)
            if same or not self.scheduler:  # another schedule starts anew
                for group, before in zip(
                    self.optimizer.param_groups, states.get('optimizer', {}).get('param_groups', ())
                ):
                    group['lr'] = before['lr']

    # ---- --verbose-topk -------------------------------------------------------------------------------

    def build_dictionary(self):
        dictionary = super().build_dictionary()
        k = self.opt.get('verbose_topk', -1)
        if k > len(dictionary):
            raise UsageError(f'--verbose-topk {k}: the LLM knows {len(dictionary)} tokens; give at most these.')
        return dictionary

    def label_logits(self, batch) -> Tensor | None:
        """Logits [B, U, V] of the labels under the selected prompt, where `--verbose-topk` asks for some of them.

        All of them at once are what the loss itself never holds, so they are computed here, and for nothing else.
        """
        if not self.show_token_details or self.opt['verbose_topk'] < 1:
            return None
        encoded = self.bare_model.encoder(*self._encoder_input(batch))
        return self.bare_model.decode_forced(encoded, batch.label_vec)[0].float()

    # ---- prefix tokens --------------------------------------------------------------------------------

    def _generate(self, batch, beam_size, max_ts, prefix_tokens=None):
        """Every reply begins with its own row of prefix_tokens, int64 [B, P], right-padded with negative ids.

        ParlAI lets each reply of a batch begin with any of the batch's prefixes, and takes padding for a token.
        """
        self._prefix, self._decoding_step = prefix_tokens, 0
        try:
            return super()._generate(batch, beam_size, max_ts)
        finally:
            self._prefix = None

    def _generation_activation(self, score: Tensor) -> Tensor:
        """Log-probabilities [B, beam, V] of the next token, in which a prefix leaves nothing but its token."""
        log_probs = super()._generation_activation(score)
        if self._prefix is not None and self._decoding_step < self._prefix.shape[1]:
            token = self._prefix[:, self._decoding_step].to(log_probs.device)  # [B]
            other = torch.arange(log_probs.shape[-1], device=log_probs.device)[None] != token[:, None]  # [B, V]
            log_probs = log_probs.masked_fill((other & (token >= 0)[:, None])[:, None], neginf(log_probs.dtype))
        self._decoding_step += 1
        return log_probs
