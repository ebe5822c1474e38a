"""Skip optimizer steps that are not finite, and explain out-of-memory errors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from parlai.utils.distributed import is_distributed
from torch import Tensor, nn

from spt_parlai.errors import UsageError

_OUT_OF_MEMORY = ('out of memory', "can't allocate memory", 'not enough memory')
_HELPS = {
    'training': (
        '--tokens-at-once 1 and --checkpoint-activations true train exactly the same model in less memory; else a '
        'smaller --batchsize (with a larger --update-freq), a shorter --text-truncate, --llm-dtype bfloat16, '
        '--llm-quantization, or more GPUs with --llm-sharding full or --llm-device-map auto'
    ),
    'replying': (
        'a smaller --batchsize or --eval-batchsize, a smaller --beam-size, a shorter --text-truncate, --llm-dtype '
        'bfloat16, --llm-quantization, or more GPUs with --llm-sharding full or --llm-device-map auto'
    ),
}


@contextlib.contextmanager
def memory_errors_explained(doing: str, several_prompts: bool = False, fits: Callable[[], str] = str):
    """Turn an out-of-memory error into a UsageError that names the options that help.

    :param doing: 'training' or 'replying'.
    :param several_prompts: whether there are several prompts, which can run one by one.
    :param fits: returns the options that would fit by an estimate, or nothing.
    :raises UsageError: within the context, in place of an out-of-memory error.
    """
    try:
        yield
    except RuntimeError as error:
        reason = str(error)
        if not isinstance(error, torch.OutOfMemoryError) and not any(sign in reason for sign in _OUT_OF_MEMORY):
            raise
        first = ' '.join(reason.split('\n')[0].split())[:160]
        helps = ('--prompt-chunk 1, or ' if several_prompts else '') + _HELPS[doing]
        estimated = f' By the estimate of `spt plan`, {options} fits.' if (options := fits()) else ''
        raise UsageError(f'out of memory while {doing} ({first}); what helps: {helps}.{estimated}') from error


def accumulate_without_sync(model, accumulated: int, update_freq: int):
    """Return the context manager for one batch: only the last batch of an update (--update-freq) exchanges gradients.

    ParlAI enters DistributedDataParallel's `no_sync` only for the backward pass. That is too late: the forward pass has
    prepared the exchange by then, so every batch of the update would exchange its gradients.

    :param model: as wrapped by DistributedDataParallel, if there are several processes.
    :param accumulated: how many batches of the update are done.
    """
    last_of_update = (accumulated + 1) % update_freq == 0
    return contextlib.nullcontext() if last_of_update or not is_distributed() else model.no_sync()


class Optimization:
    """The loss scale of a float16 LLM, and the rule that a step whose loss or gradient is not finite is skipped.

    Too many skipped steps in a row end the run.

    :param max_skipped_steps: how many in a row are too many; 0: any number is allowed.
    :param model_file: path of the run's model file, for messages.
    """

    def __init__(self, max_skipped_steps: int, model_file: str | None):
        self.max_skipped_steps = max_skipped_steps
        self.model_file = model_file
        self.scaler: torch.amp.GradScaler | None = None
        self._skipped_in_a_row = 0

    def scale_losses_for(self, dtype: torch.dtype, device: torch.device) -> None:
        """Use a dynamic loss scale around a float16 LLM, because small gradients become zero in float16."""
        if dtype == torch.float16:
            self.scaler = torch.amp.GradScaler(device.type)

    @property
    def loss_scale(self) -> float:
        return 1.0 if self.scaler is None else self.scaler.get_scale()

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the loss for the backward pass, a float32 scalar.

        A loss that is not finite makes every gradient NaN, in every process, so that all processes skip this step.
        """
        if not torch.isfinite(loss):
            loss = loss * torch.nan
        return loss if self.scaler is None else self.scaler.scale(loss)

    def gradients_are_finite(self, optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> bool:
        """Undo the loss scale in the gradients, and return whether all of them are finite."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        gradients = [p.grad for p in parameters if p.grad is not None]
        return bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))

    def step_made(self) -> None:
        self._skipped_in_a_row = 0

    def step_skipped(self, updates: int) -> None:
        """Count a skipped step. updates: how many were made before.

        :raises UsageError: if too many steps in a row were skipped.
        """
        self._skipped_in_a_row += 1
        if 0 < self.max_skipped_steps <= self._skipped_in_a_row:
            raise UsageError(
                f'training stopped: the loss or its gradient was not finite {self._skipped_in_a_row} times in a row '
                f'(after {updates} updates); lower --learningrate, give --gradient-clip 1, run the LLM in '
                '--llm-dtype bfloat16 or float32, or allow more with --max-skipped-steps (0: any number).'
                f'{self._last_good()}'
            )

    def check_finite(self, path: str, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        """Refuse to save a NaN or an infinity, so that the file keeps the last good state.

        :raises UsageError: naming the tensor.
        """
        if name := first_not_finite(model, optimizer):
            raise UsageError(f'{path} is not written: {self.diverged(name)}')

    def diverged(self, name: str) -> str:
        """Return the sentence for a trained tensor or optimizer state that is not finite."""
        return (
            f'{name} is no longer finite, so training has diverged; lower --learningrate or give --gradient-clip 1.'
            f'{self._last_good()}'
        )

    def _last_good(self) -> str:
        for path in (f'{self.model_file}.checkpoint', self.model_file) if self.model_file else ():
            if Path(path).exists():
                return f' The last good state is in {path}.'
        return ''


def first_not_finite(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> str | None:
    """Return the name of the first trained tensor or optimizer state that holds a NaN or an infinity."""
    named: list[tuple[str, Tensor]] = list(model.named_parameters())
    for state in optimizer.state.values() if optimizer is not None else ():
        named += [(f'the optimizer state {k}', v) for k, v in state.items() if torch.is_tensor(v)]
    for name, tensor in named:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return name
    return None
