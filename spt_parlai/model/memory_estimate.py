"""How much memory training will take, estimated from rows of a few tokens before the first long row runs."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from spt_parlai.model.causal_lm import CausalLM
from spt_parlai.model.sharding import weight_bytes
from spt_parlai.model.target_log_probs import LOGIT_BYTES

TRIAL_LENGTHS = (8, 16, 32)
OPTIMIZER_STATES = {'adam': 3, 'sgd': 0, 'adafactor': 1}  # times what trains (ParlAI's adam is AMSGrad); others: 2
LOGIT_COPIES = 3  # float32, of logits: a copy, their log-probabilities and their gradient


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory of the parts of a training step, in bytes.

    weights: the LM's; row: what the backward pass keeps of one row of `length` tokens; token: the logits of one target
    token; chunk: the logits that are computed at once, or None if all of them are.
    """

    weights: int
    row: int
    length: int
    token: int
    chunk: int | None

    def logits(self, targets: int) -> int:
        """Bytes of the logits of this many target tokens."""
        return targets * self.token if self.chunk is None else min(targets * self.token, self.chunk)

    def total(self, rows: int, targets: int) -> int:
        """Bytes for `rows` rows of `length` tokens that predict `targets` tokens, all at once."""
        return self.weights + rows * self.row + self.logits(targets)


def estimate_memory(llm: CausalLM, length: int) -> MemoryEstimate:
    """Estimate the weights, activations and logits of training through the frozen LM.

    What a row keeps for the backward pass is measured on rows of 8, 16 and 32 tokens and extrapolated to `length` by a
    polynomial of degree two, because attention that keeps its weights grows quadratically.
    """
    weights = weight_bytes(llm.lm)
    kept = [_kept_by_a_row(llm, t) for t in TRIAL_LENGTHS]
    powers = torch.tensor([[1.0, t, t * t] for t in TRIAL_LENGTHS], dtype=torch.float64)
    constant, linear, quadratic = torch.linalg.solve(powers, torch.tensor(kept, dtype=torch.float64)).tolist()
    row = int(constant + linear * length + quadratic * length * length)
    if layers := len(llm.recomputed_layers):  # each layer's input, and all of one layer while it runs again
        row = row // layers + layers * length * llm.hidden_size * llm.dtype.itemsize
    vocabulary = llm.lm.get_output_embeddings().weight.shape[0]
    chunk = LOGIT_COPIES * LOGIT_BYTES if llm.can_chunk_logits else None
    return MemoryEstimate(weights, row, length, vocabulary * (llm.dtype.itemsize + 4 * LOGIT_COPIES), chunk)


def _kept_by_a_row(llm: CausalLM, length: int) -> int:
    """Bytes that autograd keeps of one row, each storage counted once and the LM's weights not at all."""
    known = {p.untyped_storage()._cdata for p in llm.lm.parameters()}  # that of a shard changes its address
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    ids = torch.zeros(1, length, dtype=torch.long)
    words = llm.embed(ids).float().requires_grad_()
    layers, llm.recomputed_layers = llm.recomputed_layers, []
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = llm.logits_at(words, ids[0, :1].to(words.device))
    finally:
        llm.recomputed_layers = layers
    assert output.requires_grad, 'the trial must keep a graph'
    return sum(kept.values())


def training_memory(
    llm: CausalLM,
    batchsize: int,
    prompts_at_once: int,
    length: int,
    targets: int,
    trained: int = 0,
    optimizer: str = 'adam',
    examples_at_once: int | None = None,
) -> str:
    """Return one line for the log: the memory that training on a batch will need.

    :param prompts_at_once: how many prompts run together.
    :param length: tokens of an example, its soft prompt included.
    :param targets: how many of these tokens are predicted.
    :param trained: how many float32 values train; each has a gradient and the optimizer's states.
    :param examples_at_once: how many examples of the batch go forward and backward together; None: all.
    """
    estimate = estimate_memory(llm, length)
    rows = min(batchsize, examples_at_once or batchsize) * prompts_at_once
    states = 4 * trained * (1 + OPTIMIZER_STATES.get(optimizer, 2))
    total, free = estimate.total(rows, rows * targets) + states, available_memory(llm.device)
    line = (
        f'estimated memory of training: {readable_size(estimate.weights)} for the LLM; {readable_size(states)} for '
        f'gradients and optimizer of {trained:,} trained values; {readable_size(estimate.row)} for a row of {length} '
        f'tokens and {readable_size(estimate.logits(rows * targets))} for logits; a batch of {batchsize} x '
        f'{prompts_at_once} prompts, {rows} rows at once: {readable_size(total)} in all, plus what the libraries take'
    )
    return line if free is None else f'{line} ({readable_size(free + estimate.weights)} were free before the LLM)'


def readable_size(number: int) -> str:
    """Bytes in the largest of kB, MB and GB that gives at least 1."""
    for unit, size in (('GB', 1e9), ('MB', 1e6)):
        if number >= size:
            return f'{number / size:.1f} {unit}'
    return f'{number / 1e3:.1f} kB'


def available_memory(device: torch.device) -> int | None:
    """Free bytes of a GPU or of this machine; None where the system does not say."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    except (ValueError, OSError, AttributeError):
        return None
