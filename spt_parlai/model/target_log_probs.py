"""From hidden states to the log-probabilities of target tokens, without ever holding all logits.

The gradient of log p(t) = logits_t − logsumexp(logits) at the hidden state is W_t − Σ_v p_v W_v, which is known as soon
as the logits are. So the logits of each chunk are computed once, used for both, and dropped. What remains is as wide as
the hidden state.

Existing fused kernels do not help, because each token needs its own upstream gradient here. For that, torch's
`linear_cross_entropy` (2.13) computes all logits, and in bfloat16 for a bfloat16 LM; Liger's computes the logits twice.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOGIT_BYTES = 64 * 2**20  # size of one chunk of float32 logits


def token_log_probs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, wanted: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of target tokens, and the likeliest tokens where they are wanted.

    hidden: [N, D]; weight: [V, D] and bias: [V] or None, of the frozen head; all in the LM's dtype. targets: int64 [N];
    wanted: bool [N]. Returns (log-probabilities float32 [N], likeliest tokens int64 [N], 0 where they are not wanted).
    """
    return _TokenLogProbs.apply(hidden, weight, bias, targets, wanted)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, wanted):
        log_probs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        likeliest = torch.zeros_like(targets)
        needed = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needed else None  # of each log-probability, at its hidden state
        chunks = math.ceil(len(hidden) * weight.shape[0] * 4 / LOGIT_BYTES)
        size = math.ceil(len(hidden) / max(1, chunks)) or 1  # of equal size, because a small last chunk is slow
        for start in range(0, len(hidden), size):
            chunk = slice(start, start + size)
            logits = F.linear(hidden[chunk], weight, bias).float()  # [n, V]
            target = targets[chunk, None]
            likeliest[chunk][wanted[chunk]] = logits[wanted[chunk]].argmax(-1)
            highest = logits.amax(-1, keepdim=True)
            above = logits.gather(1, target) - highest
            residual = logits.sub_(highest).exp_()  # p, not yet normalised: value and gradient share one exponential
            total = residual.sum(-1, keepdim=True)
            log_probs[chunk] = (above - total.log())[:, 0]
            if needed:
                residual.div_(-total)  # −p
                residual.scatter_add_(1, target, torch.ones_like(total))  # one-hot − p
                torch.mm(residual.to(weight.dtype), weight, out=gradient[chunk])
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(likeliest)
        return log_probs, likeliest

    @staticmethod
    def backward(ctx, upstream, _):
        (gradient,) = ctx.saved_tensors
        return (upstream[:, None] * gradient).to(gradient.dtype), None, None, None, None
