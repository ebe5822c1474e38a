"""The model of the method: soft prompt group + retriever around a frozen LM, as ParlAI drives a generator."""

from __future__ import annotations

from typing import NamedTuple

import torch
from parlai.core.torch_generator_agent import TorchGeneratorModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spt_parlai.model.decoding import DecodingState
from spt_parlai.model.frozen_lm import FrozenLM
from spt_parlai.model.retriever import Retriever, context_mean, prefix_means, select
from spt_parlai.model.rows import TokenRows, join_all, join_chosen, target_positions, token_rows
from spt_parlai.model.soft_prompts import SoftPromptGroup


class Prediction(NamedTuple):
    """What the objective and the metrics need of one batch.

    log_probs: float32 [K, N], every prompt's log-probability of every target token (eq. 2);
    scores: float32 [B, K] (eq. 1); selected: int64 [B] (eq. 7); example: int64 [N], whose token each is;
    targets: int64 [N]; greedy: int64 [N], the likeliest token under the selected prompt.
    """

    log_probs: Tensor
    scores: Tensor
    selected: Tensor
    example: Tensor
    targets: Tensor
    greedy: Tensor


class SptModel(TorchGeneratorModel):
    """Trainable: `soft_prompts`, `retriever` and `tuned`, in float32 always. The LM is held, not registered.

    :param llm: the LM.
    :param soft_prompts: the group [K, L, D].
    :param retriever: scores prompts for contexts; None: all scores are zero, as where there is one prompt.
    :param tuned: the weights of the LM that train, if some do.
    :param padding_idx, start_idx, end_idx: ids as ParlAI's search uses them.
    :param score_noise: strength of the N(0, 1) noise on the scores before a prompt is selected, in evaluation (A.7).
    :param force_prompt: the prompt to select whatever the scores; negative: none.
    :param prompt_chunk: how many prompts the LM runs at a time; 0: all.
    """

    def __init__(
        self, llm: FrozenLM, soft_prompts: SoftPromptGroup, retriever: Retriever | None,
        padding_idx: int, start_idx: int, end_idx: int,
        *, tuned: nn.Module | None = None, score_noise: float = 0.0, force_prompt: int = -1, prompt_chunk: int = 0,
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

    def _apply(self, fn, recurse=True):
        """What trains is moved but never cast, whatever the LM's dtype (ParlAI's --fp16 halves whole models)."""
        def moved_only(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        return super()._apply(moved_only, recurse)

    def forward(
        self, contexts: Tensor, targets: Tensor, selected: Tensor | None = None,
        row: Tensor | None = None, context_length: Tensor | None = None, scored: Tensor | None = None,
    ) -> Prediction:
        """contexts int64 [R, T], targets int64 [B, U], both right-padded with negative ids; selected int64 [B], if known.

        row, context_length: int64 [B], where examples share rows (see `token_rows`); without them R = B.
        scored: int64 [B, S], right-padded, what the retriever looks at; None: the contexts.
        """
        inputs = (contexts, targets) if row is None else (contexts, targets, row, context_length)
        rows = token_rows(*(tensor.to(self.llm.device) for tensor in inputs))
        words = self.llm.embed(rows.ids)  # [R, M, D]
        if scored is None:
            scores = self._score(prefix_means(words, rows.row, rows.context_length))
        else:
            scores = self._score(context_mean(*self._embed_contexts(scored)))
        selected = self.select(scores) if selected is None else selected.to(scores.device)
        chunks = self.soft_prompts.tokens.split(self.prompt_chunk)
        if len(chunks) == 1:
            parts = [self._run(chunks[0], 0, words, rows, selected)]
        else:  # without graph now; in the backward pass each chunk is run again and its graph freed before the next
            parts = [
                checkpoint(self._run, chunk, i * self.prompt_chunk, words, rows, selected, use_reentrant=False, preserve_rng_state=False)
                for i, chunk in enumerate(chunks)
            ]
        log_probs = torch.cat([log_probs for log_probs, _ in parts])
        greedy = torch.stack([greedy for _, greedy in parts]).sum(0)
        device = scores.device
        return Prediction(
            log_probs.to(device), scores, selected, rows.example.to(device), rows.targets.to(device), greedy.to(device)
        )

    def _run(self, prompts: Tensor, first: int, words: Tensor, rows: TokenRows, selected: Tensor) -> tuple[Tensor, Tensor]:
        """The LM after some of the prompts, [k, L, D], of which `first` is the first one's number.

        Returns (log_probs float32 [k, N], the likeliest tokens int64 [N] where one of these prompts is selected, else 0).
        """
        k, L, _ = prompts.shape
        embeddings = join_all(prompts, words)
        own = selected.to(rows.example.device)[rows.example] - first  # [N], the prompt that each token's example selected
        here = own == torch.arange(k, device=own.device)[:, None]  # [k, N]
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
        scores = self._score(context_mean(words, mask) if scored is None else context_mean(*self._embed_contexts(scored)))
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

