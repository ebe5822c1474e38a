"""The model of the method: soft prompt group + retriever around a frozen LM, as ParlAI drives a generator."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from parlai.core.torch_generator_agent import TorchGeneratorModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spt_parlai.model.causal_lm import CausalLM
from spt_parlai.model.decoding import DecodingState
from spt_parlai.model.micro_batches import run_micro_batches
from spt_parlai.model.retriever import Retriever, context_mean, prefix_means, select
from spt_parlai.model.rows import RowGroup, TokenRows, join_all, join_chosen, row_groups, target_positions, token_rows
from spt_parlai.model.soft_prompts import SoftPromptGroup

_TOKENS_AT_ONCE = {'cpu': 1024}  # a dialogue after four prompts: enough for a CPU, and it needs no padding
_TOKENS_AT_ONCE_ELSEWHERE = 8192

TokenLoss = Callable[[Tensor, Tensor, int], Tensor]
"""(log-probabilities float32 [K, n] of some examples' target tokens, whose they are int64 [n], B) → what they add to the loss"""


class Prediction(NamedTuple):
    """What the objective and the metrics need of one batch.

    log_probs: float32 [K, N], every prompt's log-probability of every target token (eq. 2);
    scores: float32 [B, K] (eq. 1); selected: int64 [B] (eq. 7); example: int64 [N], whose token each is;
    targets: int64 [N]; greedy: int64 [N], the likeliest token under the selected prompt.
    token_loss: scalar, where it was asked for; `log_probs` then has no gradient, for that of the loss is made already.
    """

    log_probs: Tensor
    scores: Tensor
    selected: Tensor
    example: Tensor
    targets: Tensor
    greedy: Tensor
    token_loss: Tensor | None = None


class PromptedLM(TorchGeneratorModel):
    """Trainable: `soft_prompts`, `retriever` and `tuned`, in float32 always. The LM is held, not registered.

    :param llm: the LM.
    :param soft_prompts: the group [K, L, D].
    :param retriever: scores prompts for contexts; None: all scores are zero, as where there is one prompt.
    :param tuned: the weights of the LM that train, if some do.
    :param padding_idx, start_idx, end_idx: ids as ParlAI's search uses them.
    :param score_noise: strength of the N(0, 1) noise on the scores before a prompt is selected, in evaluation (A.7).
    :param force_prompt: the prompt to select whatever the scores; negative: none.
    :param prompt_chunk: how many prompts the LM runs at a time; 0: all.
    :param tokens_at_once: rows that run together have at most this many tokens, all prompts counted; 0: as suits the device.
    """

    def __init__(
        self,
        llm: CausalLM,
        soft_prompts: SoftPromptGroup,
        retriever: Retriever | None,
        padding_idx: int,
        start_idx: int,
        end_idx: int,
        *,
        tuned: nn.Module | None = None,
        score_noise: float = 0.0,
        force_prompt: int = -1,
        prompt_chunk: int = 0,
        tokens_at_once: int = 0,
    ):
        super().__init__(padding_idx, start_idx, end_idx)
        self.register_buffer('START', self.START, persistent=False)  # a checkpoint holds what is trained, no more
        self.llm = llm
        self.soft_prompts = soft_prompts
        self.retriever = retriever
        self.tuned = tuned
        self.score_noise = score_noise
        self.force_prompt = force_prompt
        self.prompt_chunk = prompt_chunk or soft_prompts.num_prompts
        self.tokens_at_once = tokens_at_once or _TOKENS_AT_ONCE.get(llm.device.type, _TOKENS_AT_ONCE_ELSEWHERE)

    def _apply(self, fn, recurse=True):
        """What trains is moved but never cast, whatever the LM's dtype (ParlAI's --fp16 halves whole models)."""

        def moved_only(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        return super()._apply(moved_only, recurse)

    def forward(
        self,
        contexts: Tensor,
        targets: Tensor,
        selected: Tensor | None = None,
        row: Tensor | None = None,
        context_length: Tensor | None = None,
        scored: Tensor | None = None,
        token_loss: TokenLoss | None = None,
        gradient_scale: float = 1.0,
    ) -> Prediction:
        """contexts int64 [R, T], targets int64 [B, U], both right-padded with negative ids; selected int64 [B], if known.

        row, context_length: int64 [B], where examples share rows (see `token_rows`); without them R = B.
        scored: int64 [B, S], right-padded, what the retriever looks at; None: the contexts.
        token_loss: the part of the loss that log-probabilities enter. With it, rows go forward and backward group by group
        (see `in_turn`, also for gradient_scale); without it the graph of all rows is kept.
        """
        inputs = (contexts, targets) if row is None else (contexts, targets, row, context_length)
        rows = token_rows(*(tensor.to(self.llm.device) for tensor in inputs))
        if scored is None:
            scores = self._score(prefix_means(self.llm.embed(rows.ids), rows.row, rows.context_length))
        else:
            scores = self._score(context_mean(*self._embed_contexts(scored)))
        selected = self.select(scores) if selected is None else selected.to(scores.device)
        groups = row_groups(rows, self.soft_prompts.length, self.tokens_at_once // self.soft_prompts.num_prompts)
        parts: list[tuple[Tensor, Tensor]] = []  # (log_probs [K, n], greedy [n]) of every group
        total, trained = None, self._trained_through_the_lm()

        def loss(group: RowGroup) -> Tensor:
            log_probs, greedy = self._run_group(group, selected)
            parts.append((log_probs.detach(), greedy))
            return token_loss(log_probs.to(scores.device), group.rows.example.to(scores.device), len(targets))

        if token_loss is not None and trained and torch.is_grad_enabled():
            total = run_micro_batches(trained, (partial(loss, group) for group in groups), gradient_scale)
        else:
            parts += [self._run_group(group, selected) for group in groups]
        order = torch.cat([group.token for group in groups]).argsort()
        log_probs = torch.cat([log_probs for log_probs, _ in parts], dim=1)[:, order]
        greedy = torch.cat([greedy for _, greedy in parts])[order]
        device = scores.device
        return Prediction(
            log_probs.to(device),
            scores,
            selected,
            rows.example.to(device),
            rows.targets.to(device),
            greedy.to(device),
            total,
        )

    def _trained_through_the_lm(self) -> list[Tensor]:
        modules = [self.soft_prompts] if self.tuned is None else [self.soft_prompts, self.tuned]
        return [p for module in modules for p in module.parameters() if p.requires_grad and p.numel()]

    def _run_group(self, group: RowGroup, selected: Tensor) -> tuple[Tensor, Tensor]:
        """The LM on some rows after all prompts → (log_probs float32 [K, n], likeliest tokens int64 [n])."""
        words = self.llm.embed(group.rows.ids)  # [r, M, D]
        chunks = self.soft_prompts.tokens.split(self.prompt_chunk)
        if len(chunks) == 1:
            return self._run(chunks[0], 0, words, group.rows, selected)
        # without graph now; in the backward pass each chunk is run again and its graph freed before the next
        parts = [
            checkpoint(
                self._run,
                chunk,
                i * self.prompt_chunk,
                words,
                group.rows,
                selected,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for i, chunk in enumerate(chunks)
        ]
        return torch.cat([log_probs for log_probs, _ in parts]), torch.stack([greedy for _, greedy in parts]).sum(0)

    def _run(
        self, prompts: Tensor, first: int, words: Tensor, rows: TokenRows, selected: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The LM after some of the prompts, [k, L, D], of which `first` is the first one's number.

        Returns (log_probs float32 [k, n], the likeliest tokens int64 [n] where one of these prompts is selected, else 0).
        """
        k, L, _ = prompts.shape
        embeddings = join_all(prompts, words)
        own = (
            selected.to(rows.example.device)[rows.example] - first
        )  # [n], the prompt that each token's example selected
        here = own == torch.arange(k, device=own.device)[:, None]  # [k, n]
        log_probs, greedy = self.llm.log_probs_at(
            embeddings, target_positions(rows, k, L), rows.targets.repeat(k), here.flatten()
        )
        return log_probs.view(k, -1), greedy.view(k, -1).sum(0)

    # ---- selection ------------------------------------------------------------------------------------

    def select(self, scores: Tensor) -> Tensor:
        """Equation 7, under the options that change it: scores [B, K] → int64 [B]."""
        if self.force_prompt >= 0:
            return scores.new_full(scores.shape[:1], self.force_prompt, dtype=torch.long)
        if self.score_noise and not self.training:
            scores = scores + self.score_noise * torch.randn_like(scores)
        return select(scores)

    def retrieve(self, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """contexts int64 [B, T], right-padded → (scores float32 [B, K] of eq. 1, selected int64 [B] of eq. 7)."""
        scores = self._score(context_mean(*self._embed_contexts(contexts)))
        return scores, self.select(scores)

    def _embed_contexts(self, contexts: Tensor) -> tuple[Tensor, Tensor]:
        contexts = contexts.to(self.llm.device)
        return self.llm.embed(contexts.clamp(min=0)), contexts >= 0

    def _score(self, means: Tensor) -> Tensor:
        """Means of the contexts' word embeddings, float32 [B, D] → scores float32 [B, K]."""
        prompts = self.soft_prompts.tokens
        if self.retriever is None:
            return prompts.new_zeros(len(means), len(prompts))
        return self.retriever(means.to(prompts), prompts)

    # ---- decoding, as ParlAI's search calls it --------------------------------------------------------

    def encoder(self, contexts: Tensor, selected: Tensor | None = None, scored: Tensor | None = None) -> DecodingState:
        """Select a prompt for each context (int64 [B, T], right-padded) if that is not done, and run [sp ; c] once.

        scored: as in `forward`.
        """
        words, mask = self._embed_contexts(contexts)
        scores = self._score(
            context_mean(words, mask) if scored is None else context_mean(*self._embed_contexts(scored))
        )
        selected = self.select(scores) if selected is None else selected.to(scores.device)
        rows, row_mask = join_chosen(self.soft_prompts.tokens[selected], words, mask)
        logits, cache = self.llm.prefill(rows, row_mask)
        return DecodingState(logits, cache, row_mask, scores, selected)

    def decoder(self, ids: Tensor, encoded: DecodingState, state: DecodingState | None = None):
        """ids int64 [R, steps]; returns (logits [R, 1, V], state). The first step's logits come from the prefill."""
        if state is None:
            return encoded.logits[:, None], encoded
        state = state.extended(state.mask.new_ones(len(ids), 1))
        logits, state.cache = self.llm.decode(ids[:, -1:].clamp(min=0).to(self.llm.device), state.mask, state.cache)
        return logits, state

    def decode_forced(self, encoded: DecodingState, ys: Tensor) -> tuple[Tensor, Tensor]:
        """ys int64 [R, U], right-padded with negative ids → (logits [R, U, V], likeliest tokens [R, U])."""
        logits = encoded.logits[:, None]
        if ys.shape[1] > 1:
            inputs = ys[:, :-1].to(self.llm.device)
            state = encoded.reordered(torch.arange(len(ys), device=encoded.logits.device)).extended(inputs >= 0)
            rest, _ = self.llm.decode(inputs.clamp(min=0), state.mask, state.cache)
            logits = torch.cat([logits, rest], dim=1)
        return logits, logits.argmax(-1)

    def output(self, logits: Tensor) -> Tensor:
        """The decoder's output is logits already; a float32 copy, for ParlAI's search works in place."""
        return logits.to(torch.float32, copy=True)

    def reorder_encoder_states(self, encoder_states: DecodingState, indices) -> DecodingState:
        return encoder_states.reordered(torch.as_tensor(indices, device=encoder_states.logits.device))

    def reorder_decoder_incremental_state(self, incremental_state: DecodingState, inds: Tensor) -> DecodingState:
        inds = inds.to(incremental_state.logits.device)
        if torch.equal(inds, torch.arange(len(incremental_state.mask), device=inds.device)):
            return incremental_state
        return incremental_state.reordered(inds)
