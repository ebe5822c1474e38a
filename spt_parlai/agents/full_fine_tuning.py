"""Full fine-tuning: all weights of an LLM train; there is no soft prompt."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from parlai.core.metrics import GlobalAverageMetric, GlobalTimerMetric, SumMetric
from parlai.utils import distributed
from parlai.utils.distributed import is_distributed, is_primary_worker, sync_object

from spt_parlai.agents.base import LLMAgent
from spt_parlai.agents.optimization import first_not_finite
from spt_parlai.errors import UsageError, naming
from spt_parlai.model import sharding
from spt_parlai.model.adapters import TunedWeights, tune_all
from spt_parlai.model.causal_lm import CausalLM
from spt_parlai.model.prompted_lm import PromptedLM
from spt_parlai.model.sharded_tuning import TunedShares


class FullFineTuningAgent(LLMAgent):
    """The control of the paper's introduction. The LLM stays in eval mode, without dropout, as under every agent.

    With `--llm-sharding` each of several processes trains its shares of the weights (`model.sharded_tuning`).
    """

    kind = 'FullFineTuningAgent'
    llm_dtype = 'float32'
    defaults = {'learningrate': 2e-5}

    def __init__(self, opt, shared=None):
        for name in ('llm_dtype', 'llm_quantization', 'fp16'):
            if opt.get(name) not in ('auto', 'none', 'float32', False, None):
                raise UsageError(
                    f'--{name.replace("_", "-")} {opt[name]}: all weights train, and do so in float32; leave it out, '
                    'or train LoRA matrices with -m spt_parlai.agents:LoraAgent.'
                )
        super().__init__(opt, shared)
        if shared is None:
            opt['ddp_backend'] = self.opt['ddp_backend'] = 'ddp'

    def _prepare(self, opt):
        super()._prepare(opt)
        if opt['llm_sharding'] != 'none' and is_distributed():
            opt['ddp_backend'] = 'none'  # torch's wrapper would give every process the gradient of every share
            if opt.get('optimizer') == 'adafactor':
                raise UsageError(
                    f'--llm-sharding {opt["llm_sharding"]}: adafactor looks at whole matrices, of which each process '
                    'has a share; use --optimizer adam or adamw.'
                )

    def tune(self, llm: CausalLM) -> TunedWeights | TunedShares:
        if (divided := sharding.of(llm.lm)) is None:
            return tune_all(llm)
        with naming('--llm-sharding', self.opt['llm_sharding']):
            return TunedShares(llm, divided, self.opt.get('update_freq', 1))

    def build_model(self) -> PromptedLM:
        model = super().build_model()
        model.no_sync = contextlib.nullcontext  # of DistributedDataParallel: shares sum their gradients in every batch
        return model

    @property
    def _shares(self) -> TunedShares | None:
        tuned = self.bare_model.tuned
        return tuned if isinstance(tuned, TunedShares) else None

    # ---- an update of shares --------------------------------------------------------------------------

    def update_params(self):
        """Make an optimizer step, as the base class and ParlAI do, with the norm of all processes' gradients."""
        shares = self._shares
        if shares is None:
            super().update_params()
            return
        if self._number_grad_accum != 0:  # in the middle of an update (--update-freq)
            return
        shares.complete_gradients()
        norm, most = shares.gradient_norm(), self.opt.get('gradient_clip', -1)
        if not torch.isfinite(norm):
            self.optimizer.zero_grad()
            self.global_metrics.add('skipped_steps', SumMetric(1))
            self.optimization.step_skipped(self._number_training_updates)
            return
        self.optimization.step_made()
        self.global_metrics.add('gnorm', GlobalAverageMetric(norm))
        if most > 0:
            torch.nn.utils.clip_grads_with_norm_(shares.parameters(), most, norm)
            self.global_metrics.add('clip', GlobalAverageMetric(float(norm > most)))
        self.optimizer.step()
        shares.updated()
        self._number_training_updates += 1
        if is_primary_worker():
            self.global_metrics.add('ups', GlobalTimerMetric(1))
        if getattr(self, 'scheduler', None):
            self.scheduler.step(self._number_training_updates)

    def average_accumulated_gradients(self) -> None:
        shares = self._shares
        if shares is None:
            super().average_accumulated_gradients()
        elif self._number_grad_accum:
            shares.complete_gradients()

    # ---- the model file of shares ---------------------------------------------------------------------

    def save(self, path=None):
        """Write the model file. With shards all processes call this together, and a folder is written, too.

        :raises UsageError: for a tensor that is not finite, or a file that cannot be written.
        """
        from spt_parlai.agents import sharded_states  # torch's checkpoints take a second to import
        from spt_parlai.checkpoints import shards

        path, shares, folder = path or self.opt.get('model_file'), self._shares, None
        if not path:
            return
        if shares is None:
            super().save(path)
        else:
            bad = distributed.all_gather_list(first_not_finite(self.bare_model, self.optimizer))
            if name := next(filter(None, bad), None):
                raise UsageError(f'{path} is not written: {self.optimization.diverged(name)}')
            folder = sync_object(shards.new_folder(path))
            states = sharded_states.move_to_folder(self.state_dict(), shares, folder)
            if not is_primary_worker():
                return
            self.persistence.write(path, {**self.opt, **self._asked}, self.dict, states)
        shards.remove_others(path, folder)

    def save_nonprimary(self, path=None):
        """Take part in `save` of the first process."""
        if self._shares is not None:
            self.save(path)

    def read_states(self, path: str) -> dict[str, Any]:
        from spt_parlai.agents import sharded_states

        states, shares = super().read_states(path), self._shares
        if self._is_finetune or not self._should_initialize_optimizer():
            return states
        if shares is None:
            return sharded_states.for_whole_weights(path, states)
        return sharded_states.for_shares(path, states, shares)
