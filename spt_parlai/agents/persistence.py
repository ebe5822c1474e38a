"""Write the model file of an agent, and restore an agent from one.

A bad file is refused before the LLM loads, and a damaged optimizer or scheduler before the first step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from parlai.core import opt as parlai_opt
from parlai.utils import logging
from torch import Tensor

from spt_parlai.checkpoints import files
from spt_parlai.checkpoints.files import damage_explained
from spt_parlai.checkpoints.schema import check_fits
from spt_parlai.dialogue.mutator import MUTATOR
from spt_parlai.errors import UsageError
from spt_parlai.gguf_files.sources import is_same

# Options of one run alone: those that ParlAI removes, such as paths of this machine, and --init-model, with which
# ParlAI would load the checkpoint that a run was resumed from instead of its best model.
_NOT_SAVED = ('init_model', *parlai_opt.__AUTOCLEAN_KEYS__)


class Persistence:
    """The model file that an agent begins from, if there is one, and the one that it writes.

    :param path: the file to begin from, read now; None for a model that begins anew.
    :param kind: the agent's kind, which must be that of the file.
    :raises UsageError: for a file that is damaged, or of another kind.
    """

    def __init__(self, path: str | None, kind: str):
        self.path = path
        self.kind = kind
        self.description: dict[str, Any] = {}  # of the model, see `checkpoints.files.describe`; set once it is built
        self._states: dict[str, Any] | None = None
        if path is not None:
            self._states = files.load_states(path)
            files.check_kind(path, self._states['spt'], kind)

    @property
    def loads(self) -> bool:
        """Whether what is built will be overwritten by the file."""
        return self._states is not None

    def check(self, asked: dict[str, Any]) -> None:
        """Compare the file to begin from with what is known of the model before it is built: a part of a description.

        :raises UsageError: if the file does not fit.
        """
        if self._states is not None and self.path is not None:
            files.check_match(self.path, self._states['spt'], asked)

    def read(self, path: str) -> dict[str, Any]:
        """Return the states of a file, which must fit the LLM and the shapes of this run.

        :raises UsageError: if it does not fit.
        """
        states = self._states if self._states is not None and path == self.path else files.load_states(path)
        self._states, self.path = None, path
        files.check_match(path, states['spt'], self.description)
        trained, here = states['spt']['llm'], self.description['llm']
        if not is_same(trained, here):
            logging.warning(
                f'{path} was trained around --llm {trained} and now runs around --llm {here}, which has the same '
                'shape; it works as trained only if both are the same LLM.'
            )
        return states

    def write(self, path: str, opt, dictionary, states: dict[str, Any]) -> None:
        """Write the options first, then the checkpoint, each whole or not at all."""
        kept = {name: value for name, value in opt.items() if name not in _NOT_SAVED}
        if kept.get('mutators') == MUTATOR:  # the training loop's own choice; other commands see data as it is
            del kept['mutators']
        files.save_json(kept, f'{path}.opt')
        dictionary.save(f'{path}.dict')
        files.save_states({**states, 'spt': self.description}, path)

    # ---- restoring states -----------------------------------------------------------------------------

    def restore_tensors(self, load: Callable[[dict], None], tensors: dict[str, Tensor]) -> None:
        """Give the trained tensors to `load`.

        :raises UsageError: for tensors that do not fit the model.
        """
        try:
            load(tensors)
        except RuntimeError as error:
            reason = ' '.join(str(error).split())
            raise UsageError(f'{self.path} is damaged ({reason}); restore it from a copy.') from error

    def restore_loss_scale(self, scaler: torch.amp.GradScaler, states: dict[str, Any]) -> None:
        """Restore the dynamic loss scale of a float16 LLM.

        :raises UsageError: if the saved one is damaged.
        """
        with damage_explained(self.path):
            check_fits(states['loss_scale'], scaler.state_dict(), 'its loss_scale')
            scaler.load_state_dict(states['loss_scale'])

    def check_optimizer(
        self,
        build: Callable[[Sequence[Tensor], dict], torch.optim.Optimizer],
        parameters: Sequence[Tensor],
        states: dict,
    ) -> None:
        """Take one step on copies: a damaged state may load and fail only in the first step.

        :param build: (parameters, states) → an optimizer with these states.
        :raises UsageError: if the state is damaged.
        """
        with damage_explained(self.path):
            copies = [parameter.detach().clone().requires_grad_() for parameter in parameters]
            optimizer = build(copies, copy.deepcopy(states))
            for parameter in copies:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()

    def check_scheduler(self, scheduler, states: dict[str, Any]) -> None:
        """Check the saved state of a scheduler and of its warm-up against a new scheduler of that kind.

        :raises UsageError: if it is damaged.
        """
        warmup = scheduler.get_warmup_state_dict() or {}
        with damage_explained(self.path):
            check_fits(states['lr_scheduler'], scheduler.get_state_dict(), 'its lr_scheduler')
            check_fits(states.get('warmup_scheduler') or {}, warmup, 'its warmup_scheduler')


def accumulated(batches: int, parameters: Sequence[Tensor]) -> dict[str, Any]:
    """Return the part of an update (`--update-freq`) that is done: the number of batches and the gradients."""
    return {'batches': batches, 'gradients': [parameter.grad for parameter in parameters]}


def restore_accumulated(saved: dict[str, Any], parameters: Sequence[Tensor]) -> int:
    """Restore accumulated gradients, and return the number of batches that they come from."""
    for parameter, gradient in zip(parameters, saved['gradients'], strict=True):
        parameter.grad = None if gradient is None else gradient.to(parameter.device)
    return saved['batches']


def keep_learning_rates(optimizer: torch.optim.Optimizer, saved_groups: Sequence[dict]) -> None:
    """Set the saved learning rates, because building a scheduler of torch's changes them as its first step would."""
    for group, before in zip(optimizer.param_groups, saved_groups, strict=False):
        group['lr'] = before['lr']
