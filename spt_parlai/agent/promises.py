"""What ParlAI promises of a generator and its own base class does not keep, each for the reason at its method."""

from __future__ import annotations

import torch
from parlai.utils.torch import neginf
from torch import Tensor

from spt_parlai.errors import UsageError
from spt_parlai.training import checkpoint
from spt_parlai.training.checkpoint_schema import check_fits


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
        with checkpoint.damage_explained(self._came_from):
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
