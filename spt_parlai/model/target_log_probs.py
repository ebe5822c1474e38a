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
from torch import Tensor

LOGIT_BYTES = 64 * 2**20  # size of one chunk of float32 logits
CACHED_BYTES = 2**20  # of those in float32 that are computed with at once on a CPU, where memory costs more than time


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
        logits = torch.empty(size, weight.shape[0], dtype=weight.dtype, device=hidden.device)  # one chunk's, used again
        rows = size if hidden.device.type != 'cpu' else max(1, CACHED_BYTES // (weight.shape[0] * 4))
        for start in range(0, len(hidden), size):
            chunk = logits[: len(hidden) - start]
            if bias is None:
                torch.mm(hidden[start : start + size], weight.t(), out=chunk)
            else:
                torch.addmm(bias, hidden[start : start + size], weight.t(), out=chunk)
            for first in range(0, len(chunk), rows):
                here = slice(start + first, start + min(first + rows, len(chunk)))
                of_rows = chunk[first : first + rows]
                single = of_rows.float()  # [n, V]; for an LM in float32 it is the chunk itself
                target = targets[here, None]
                likeliest[here][wanted[here]] = single[wanted[here]].argmax(-1)
                highest = single.amax(-1, keepdim=True)
                above = single.gather(1, target) - highest
                residual = single.sub_(highest).exp_()  # p, not yet normalised: value and gradient share an exponential
                total = residual.sum(-1, keepdim=True)
                log_probs[here] = (above - total.log())[:, 0]
                if needed:
                    residual.div_(-total)  # −p
                    residual.scatter_add_(1, target, torch.ones_like(total))  # one-hot − p
                    of_rows.copy_(residual)
            if needed:
                torch.mm(chunk, weight, out=gradient[start : start + size])
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(likeliest)
        return log_probs, likeliest

    @staticmethod
    def backward(ctx, upstream, _):
        (gradient,) = ctx.saved_tensors
        return (upstream[:, None] * gradient).to(gradient.dtype), None, None, None, None
