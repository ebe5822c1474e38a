"""Compare ways to compute target tokens' log-probabilities with their gradient at the hidden states.

    python projects/benchmark/projection.py [--tokens 312] [--dtype float32] [--rounds 7]

Compared are this package's chunks of logits, all logits at once, and torch's own function. The shape is OPT-125M's, and
the default number of tokens is about that of one packed dialogue with four prompts.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from spt_parlai.model import target_log_probs
from spt_parlai.model.target_log_probs import token_log_probs

D, V = 768, 50272


def chunks(megabytes: int):
    """This package's function with chunks of logits of this size."""

    def ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        target_log_probs.LOGIT_BYTES = megabytes * 2**20
        return token_log_probs(hidden, weight, None, targets, torch.zeros_like(targets, dtype=torch.bool))[0]

    return ours


def at_once(hidden, weight, targets):
    return -F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction='none')


def torchs_own(hidden, weight, targets):
    return -F.linear_cross_entropy(hidden, weight, targets, reduction='none')


WAYS = {'ours, 64 MB': chunks(64), 'ours, 32 MB': chunks(32), 'ours, 16 MB': chunks(16), 'all logits': at_once}
if hasattr(F, 'linear_cross_entropy'):  # torch 2.13
    WAYS['linear_cross_entropy'] = torchs_own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--tokens', type=int, default=312, help='N, target tokens')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--rounds', type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    hidden, weight = (torch.randn(n, D, device=args.device) for n in (args.tokens, V))
    targets = torch.randint(V, (args.tokens,), device=args.device)
    upstream = torch.rand(args.tokens, device=args.device)
    hidden, weight = hidden.to(dtype), (0.02 * weight).to(dtype)
    exact = torch.log_softmax(hidden.double() @ weight.double().T, -1).gather(1, targets[:, None])[:, 0]
    took: dict[str, list[float]] = {name: [] for name in WAYS}
    error = {}
    for _ in range(args.rounds + 1):
        for name, way in WAYS.items():
            leaf = hidden.clone().requires_grad_()
            start = _clock(args.device)
            log_probs = way(leaf, weight, targets)
            (log_probs * upstream).sum().backward()
            took[name].append(_clock(args.device) - start)
            error[name] = float((log_probs.detach() - exact).abs().max())
    ours = statistics.median(took['ours, 64 MB'][1:])
    print(
        f'{args.tokens} tokens, {args.dtype}, {args.device}, '
        f'{torch.get_num_threads()} threads, torch {torch.__version__}'
    )
    print(f'{"":22}{"ms":>8}{"GFLOP/s":>10}{"× ours":>8}{"largest error":>15}')
    for name, seconds in took.items():
        median = statistics.median(seconds[1:])
        print(
            f'{name:22}{1000 * median:8.0f}{4e-9 * args.tokens * D * V / median:10.0f}'
            f'{median / ours:8.2f}{error[name]:15.1e}'
        )


def _clock(device: str) -> float:
    """Seconds of processor time on a CPU, which may be shared with other work; of wall-clock time on a GPU."""
    if device == 'cpu':
        return time.process_time() / torch.get_num_threads()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == '__main__':
    main()
