"""Optimizer steps that leave nothing but finite numbers behind, and memory errors that say what helps."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from parlai.core.metrics import GlobalAverageMetric, SumMetric

from spt_parlai.errors import UsageError

_OUT_OF_MEMORY = ('out of memory', "can't allocate memory", 'not enough memory')
_HELPS = {
    'training': (
        '--tokens-at-once 1 and --checkpoint-activations true train exactly the same model in less memory; else a smaller '
        '--batchsize (with a larger --update-freq), a shorter --text-truncate, --llm-dtype bfloat16, --llm-quantization, or '
        'more GPUs with --llm-device-map auto'
    ),
    'replying': (
        'a smaller --batchsize or --eval-batchsize, a smaller --beam-size, a shorter --text-truncate, --llm-dtype bfloat16, '
        '--llm-quantization, or more GPUs with --llm-device-map auto'
    ),
}


@contextlib.contextmanager
def memory_errors_explained(doing: str, chunks: bool = False):
    """Turn an out-of-memory error into a UsageError that names the options that help.

    doing: 'training' or 'replying'; chunks: are there several prompts, which can be run one by one?
    """
    try:
        yield
    except RuntimeError as error:
        reason = str(error)
        if not isinstance(error, torch.OutOfMemoryError) and not any(sign in reason for sign in _OUT_OF_MEMORY):
            raise
        first = ' '.join(reason.split('\n')[0].split())[:160]
        helps = ('--prompt-chunk 1, or ' if chunks else '') + _HELPS[doing]
        raise UsageError(f'out of memory while {doing} ({first}); what helps: {helps}.') from error


class SteadySteps:
    """A mixin before ParlAI's TorchAgent: loss scaling for a float16 LLM, and no step from a number that is not finite.

    Such a step is skipped and counted (`skipped_steps` in the log); `--max-skipped-steps` of them in a row end the run.
    """

    scaler: torch.amp.GradScaler | None = None
    _skipped_in_a_row = 0

    def use_loss_scaling(self, dtype: torch.dtype, device: torch.device) -> None:
        """Small gradients vanish in float16 alone: it gets a dynamic loss scale, other dtypes none."""
        if dtype == torch.float16:
            self.scaler = torch.amp.GradScaler(device.type)

    @property
    def loss_scale(self) -> float:
        return 1.0 if self.scaler is None else self.scaler.get_scale()

    def train_step(self, batch):
        with memory_errors_explained('training', chunks='prompt_chunk' in self.opt):
            return super().train_step(batch)

    def backward(self, loss, **kwargs):
        if not torch.isfinite(loss):
            loss = loss * torch.nan  # every gradient becomes NaN, in every process, so that all of them skip this step
        super().backward(loss if self.scaler is None else self.scaler.scale(loss), **kwargs)

    def update_params(self):
        if self._number_grad_accum != 0:  # in the middle of --update-freq batches
            return
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
            self.global_metrics.add('loss_scale', GlobalAverageMetric(self.scaler.get_scale()))
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            self._skipped_in_a_row = 0
            super().update_params()
        else:
            self._skip_step()
        if self.scaler is not None:
            self.scaler.update()

    def _skip_step(self) -> None:
        self.optimizer.zero_grad()
        self._skipped_in_a_row += 1
        self.global_metrics.add('skipped_steps', SumMetric(1))
        if 0 < self.opt['max_skipped_steps'] <= self._skipped_in_a_row:
            raise UsageError(
                f'training stopped: the loss or its gradient was not finite {self._skipped_in_a_row} times in a row (after '
                f'{self._number_training_updates} updates); lower --learningrate, give --gradient-clip 1, run the LLM in '
                f'--llm-dtype bfloat16 or float32, or allow more with --max-skipped-steps (0: any number).{self._last_good()}'
            )

    def _last_good(self) -> str:
        model_file = self.opt.get('model_file')
        for path in (f'{model_file}.checkpoint', model_file) if model_file else ():
            if Path(path).exists():
                return f' The last good state is in {path}.'
        return ''

    def check_finite(self, path) -> None:
        """Refuse to save what holds a NaN or an infinity, so that the file keeps the last good state."""
        if name := self.not_finite():
            raise UsageError(f'{path} is not written: {self.diverged(name)}')

    def not_finite(self) -> str | None:
        """The first trained tensor or optimizer state that holds a NaN or an infinity."""
        named = [*self.bare_model.named_parameters()]
        if hasattr(self, 'optimizer'):
            for state in self.optimizer.state.values():
                named += [(f'the optimizer state {k}', v) for k, v in state.items() if torch.is_tensor(v)]
        for name, tensor in named:
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                return name
        return None

    def refuse_evaluation(self) -> None:
        """A loss that is not finite is no result: say whose fault it is."""
        name, llm = self.not_finite(), self.bare_model.llm
        if name:
            raise UsageError(f'nothing to evaluate: {self.diverged(name)}')
        largest = max(float(p.detach().abs().max()) for p in self.bare_model.parameters())
        raise UsageError(
            f'--llm {self.opt["llm"]} in {llm.dtype} gives a loss that is not finite (the largest trained value is {largest:.1e}); '
            'run it in --llm-dtype bfloat16 or float32, or train with a lower --learningrate.'
        )

    def diverged(self, name: str) -> str:
        return f'{name} is no longer finite, so training has diverged; lower --learningrate or give --gradient-clip 1.{self._last_good()}'
