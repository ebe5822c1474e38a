"""What an agent writes into its checkpoint, and how it takes it back."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch

from spt_parlai.errors import UsageError
from spt_parlai.training import checkpoint
from spt_parlai.training.checkpoint_schema import check_fits

# of this run alone: with the last two, ParlAI would load the checkpoint that a run was resumed from instead of its best model
_NOT_SAVED = ('training_loop', 'init_model', 'load_from_checkpoint')


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
        """Options first, then the checkpoint, each whole or not at all."""
        path = self.opt.get('model_file') if path is None else path
        if path:
            self.check_finite(path)
            options = {**self.opt, **self._asked}  # the limits that were asked for, not what this window made of them
            checkpoint.save_json({k: v for k, v in options.items() if k not in _NOT_SAVED}, f'{path}.opt')
            self.dict.save(f'{path}.dict')
            checkpoint.save_states(self.state_dict(), path)

    def init_optim(self, params, optim_states=None, saved_optim_type=None, is_finetune=False):
        """ParlAI's, after a trial on copies: a damaged state may load and fail only in the first step."""
        if optim_states and not is_finetune:
            with checkpoint.damage_explained(self._came_from):
                copies = [parameter.detach().clone().requires_grad_() for parameter in params]
                super().init_optim(copies, copy.deepcopy(optim_states), saved_optim_type)
                for parameter in copies:
                    parameter.grad = torch.zeros_like(parameter)
                self.optimizer.step()
        return super().init_optim(params, optim_states, saved_optim_type, is_finetune)

    def load(self, path):
        states = self._loaded[1] if path == self._loaded[0] else checkpoint.load_states(path)
        self._loaded, self._came_from = (None, {}), path
        checkpoint.check_match(path, states['spt'], self.description)
        try:
            self.load_state_dict(states['model'])
        except RuntimeError as error:
            raise UsageError(f'{path} is damaged ({" ".join(str(error).split())}); restore it from a copy.') from error
        if 'optimizer' in states and hasattr(self, 'optimizer'):
            with checkpoint.damage_explained(path), contextlib.suppress(ValueError):  # another optimizer starts anew
                self.optimizer.load_state_dict(states['optimizer'])
        self.progress = states.get('progress', {})
        if self.scaler is not None and states.get('loss_scale'):
            with checkpoint.damage_explained(path):
                check_fits(states['loss_scale'], self.scaler.state_dict(), 'its loss_scale')
                self.scaler.load_state_dict(states['loss_scale'])
        if 'accumulated' in states and not self._is_finetune:
            self._number_grad_accum = states['accumulated']['batches']
            for parameter, gradient in zip(self.model.parameters(), states['accumulated']['gradients'], strict=True):
                parameter.grad = None if gradient is None else gradient.to(parameter.device)
        return states
