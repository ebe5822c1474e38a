"""The model of the method, as ParlAI drives a generator: soft prompts and a retriever around a causal LM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from parlai.core.torch_generator_agent import TorchGeneratorModel
from parlai.utils.torch import neginf
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spt_parlai.model.causal_lm import CausalLM
from spt_parlai.model.context_states import ContextStates
from spt_parlai.model.decoding import DecodingState
from spt_parlai.model.micro_batches import MicroBatches
from spt_parlai.model.retriever import Retriever, context_mean, prefix_means, select
from spt_parlai.model.rows import (
    TokenRows,
    first_of_targets,
    join_all,
    join_chosen,
    row_groups,
    target_positions,
    token_rows,
)
from spt_parlai.model.soft_prompts import SoftPromptGroup

_TOKENS_AT_ONCE = {'cpu': 1024}  # a dialogue after four prompts: enough for a CPU, and it needs no padding
_TOKENS_AT_ONCE_ELSEWHERE = 8192

TokenLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(log-probabilities of n target tokens, float32 [K, n]; scores, float32 [B, K]; the tokens' examples, int64 [n]) → the
tokens' part of the loss"""


class Selection(NamedTuple):
    """The result of the retriever for B contexts. scores: float32 [B, K] (eq. 1); selected: int64 [B], i* of eq. 7."""

    scores: Tensor
    selected: Tensor


class Prediction(NamedTuple):
    """What the objective and the metrics need of one batch.

    log_probs: float32 [K, N], every prompt's log-probability of every target token (eq. 2);
    scores: float32 [B, K] (eq. 1); selected: int64 [B] (eq. 7); example: int64 [N], the example each token belongs to;
    targets: int64 [N]; greedy: int64 [N], the likeliest token under the selected prompt.
    token_loss: a scalar, if it was asked for; its gradient is computed already, and `log_probs` has none then.
    states: what replies to the contexts begin with, if it was asked for and the LM's caches can be cut.
    """

    log_probs: Tensor
    scores: Tensor
    selected: Tensor
    example: Tensor
    targets: Tensor
    greedy: Tensor
    token_loss: Tensor | None = None
    states: ContextStates | None = None


class PromptedLM(TorchGeneratorModel):
    """Soft prompts and a retriever around a causal LM, with the methods that ParlAI's generator agent calls.

    `soft_prompts`, `retriever` and `tuned` train, always in float32. The LM is held, but is not a registered module.

    :param llm: the LM.
    :param soft_prompts: the group [K, L, D].
    :param retriever: scores prompts for contexts; None: all scores are zero, for a model with one prompt.
    :param padding_idx, start_idx, end_idx: the ids that ParlAI's search uses.
    :param other_ends: further tokens at which a reply ends.
    :param end_temperature: the temperature of sampled replies, which end with the probability of all end tokens
        together; 0: replies are searched, and only the likeliest end token counts.
    :param tuned: the weights of the LM that train, if any do.
    :param score_noise: strength of the N(0, 1) noise on the scores before a prompt is selected, in evaluation (A.7).
    :param force_prompt: the prompt to select whatever the scores are; negative: none.
    :param prompt_chunk: how many prompts the LM runs at a time; 0: all.
    :param tokens_at_once: rows that run together have at most this many tokens, counting all prompts; 0: the device's
        default.
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
        other_ends: Sequence[int] = (),
        end_temperature: float = 0.0,
        tuned: nn.Module | None = None,
        score_noise: float = 0.0,
        force_prompt: int = -1,
        prompt_chunk: int = 0,
        tokens_at_once: int = 0,
    ):
        super().__init__(padding_idx, start_idx, end_idx)
        self.register_buffer('START', self.START, persistent=False)  # checkpoints hold only what is trained
        self.llm = llm
        self.soft_prompts = soft_prompts
        self.retriever = retriever
        self.other_ends = list(other_ends)
        self.end_temperature = end_temperature
        self.tuned = tuned
        self.score_noise = score_noise
        self.force_prompt = force_prompt
        self.prompt_chunk = prompt_chunk or soft_prompts.num_prompts
        self.tokens_at_once = tokens_at_once or _TOKENS_AT_ONCE.get(llm.device.type, _TOKENS_AT_ONCE_ELSEWHERE)

    def _apply(self, fn, recurse=True):
        """Move what trains, but never cast it, whatever the LM's dtype (ParlAI's --fp16 halves whole models)."""

        def moved_only(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        return super()._apply(moved_only, recurse)

    # ---- log-probabilities of targets -----------------------------------------------------------------

    def forward(
        self,
        contexts: Tensor,
        targets: Tensor,
        *,
        row: Tensor | None = None,
        context_length: Tensor | None = None,
        scored: Tensor | None = None,
        selection: Selection | None = None,
        token_loss: TokenLoss | None = None,
        gradient_scale: float = 1.0,
        keep_states: bool = False,
    ) -> Prediction:
        """Predict every target after every prompt (eq. 2), and select a prompt for every context (eq. 1 and 7).

        :param contexts: int64 [R, T], right-padded with negative ids.
        :param targets: int64 [B, U], right-padded with negative ids.
        :param row, context_length: int64 [B], where examples share rows (see `token_rows`); without them R = B.
        :param scored: int64 [B, S], right-padded, what the retriever looks at; None: the contexts.
        :param selection: what `retrieve` returned for these examples; None: they are scored here, with gradients.
        :param token_loss: the part of the loss that depends on log-probabilities. With it, groups of rows go forward
            and backward one after the other (see `micro_batches`); without it the graph of all rows is kept.
        :param gradient_scale: see `MicroBatches`.
        :param keep_states: also return the states after the contexts.
        """
        device = self.llm.device
        if row is not None and context_length is not None:
            row, context_length = row.to(device), context_length.to(device)
        rows = token_rows(contexts.to(device), targets.to(device), row, context_length)
        if selection is None and scored is not None:
            selection = self.retrieve(scored)
        elif selection is None:
            selection = self._select_by_means(prefix_means(self.llm.embed(rows.ids), rows.row, rows.context_length))
        scores, selected = selection
        K, L, _ = self.soft_prompts.tokens.shape
        groups = row_groups(rows, L, self.tokens_at_once // K)
        trained = self._trained_through_the_lm()
        micro_batches = None
        if token_loss is not None and trained and torch.is_grad_enabled():
            micro_batches = MicroBatches(trained, gradient_scale)
        states = ContextStates(scores, selected) if keep_states and self.llm.keeps_caches else None
        parts: list[tuple[Tensor, Tensor]] = []  # (log_probs [K, n], greedy [n]) of every group
        for group in groups:
            log_probs, greedy = self._run_group(group.rows, selected, states)
            log_probs = log_probs.to(scores.device)
            if micro_batches is not None and token_loss is not None:
                micro_batches.add(token_loss(log_probs, scores.detach(), group.rows.example.to(scores.device)))
                log_probs = log_probs.detach()
            parts.append((log_probs, greedy.to(scores.device)))
        order = torch.cat([group.token for group in groups]).argsort().to(scores.device)
        return Prediction(
            torch.cat([log_probs for log_probs, _ in parts], dim=1)[:, order],
            scores,
            selected,
            rows.example.to(scores.device),
            rows.targets.to(scores.device),
            torch.cat([greedy for _, greedy in parts])[order],
            None if micro_batches is None else micro_batches.sum(),
            states,
        )

    def _trained_through_the_lm(self) -> list[Tensor]:
        modules = [self.soft_prompts] if self.tuned is None else [self.soft_prompts, self.tuned]
        return [p for module in modules for p in module.parameters() if p.requires_grad and p.numel()]

    def _run_group(self, rows: TokenRows, selected: Tensor, states: ContextStates | None) -> tuple[Tensor, Tensor]:
        """Run some rows after all prompts → (log_probs float32 [K, n], likeliest tokens int64 [n])."""
        words = self.llm.embed(rows.ids)  # [r, M, D]
        chunks = self.soft_prompts.tokens.split(self.prompt_chunk)
        if len(chunks) == 1:
            return self._run_prompts(chunks[0], 0, words, rows, selected, states)
        # a chunk runs without a graph now and again in the backward pass, which frees its graph before the next chunk
        parts = [
            checkpoint(
                self._run_prompts,
                chunk,
                i * self.prompt_chunk,
                words,
                rows,
                selected,
                states,
                use_reentrant=False,
                preserve_rng_state=self.tuned is not None,  # whose dropout must be the same again
            )
            for i, chunk in enumerate(chunks)
        ]
        return torch.cat([log_probs for log_probs, _ in parts]), torch.stack([greedy for _, greedy in parts]).sum(0)

    def _run_prompts(
        self,
        prompts: Tensor,
        first: int,
        words: Tensor,
        rows: TokenRows,
        selected: Tensor,
        states: ContextStates | None,
    ) -> tuple[Tensor, Tensor]:
        """Run rows after some of the prompts, [k, L, D]; `first` is the number of the first one.

        Keeps the states of the examples that selected these prompts. Returns (log_probs float32 [k, n], likeliest
        tokens int64 [n], 0 where none of these prompts is selected).
        """
        k, L, _ = prompts.shape
        # [n], the prompt that each token's example selected
        own = selected.to(rows.example.device)[rows.example] - first
        here = own == torch.arange(k, device=own.device)[:, None]  # [k, n]
        begins = None if states is None else first_of_targets(rows, here)
        found = self.llm.log_probs_at(
            join_all(prompts, words), target_positions(rows, k, L), rows.targets.repeat(k), here.flatten(), begins
        )
        if states is not None and begins is not None and len(begins):
            prompt, token = begins // here.shape[1], begins % here.shape[1]
            example = rows.example[token]
            row = prompt * len(rows.ids) + rows.row[example]
            assert found.logits is not None
            states.keep(found.cache, example, row, L + rows.context_length[example], found.logits)
        return found.log_probs.view(k, -1), found.likeliest.view(k, -1).sum(0)

    # ---- selection ------------------------------------------------------------------------------------

    def retrieve(self, contexts: Tensor) -> Selection:
        """Score and select prompts for contexts, int64 [B, T], right-padded with negative ids."""
        return self._select_by_means(context_mean(*self._embed_contexts(contexts)))

    def context_means(self, contexts: Tensor, row: Tensor | None = None, length: Tensor | None = None) -> Tensor:
        """Return what the retriever sees of contexts, the means of their word embeddings: float32 [B, D].

        contexts: int64 [R, T], right-padded with negative ids; row, length: int64 [B], where contexts share rows.
        """
        words, mask = self._embed_contexts(contexts)
        if row is None or length is None:
            return context_mean(words, mask)
        return prefix_means(words, row.to(words.device), length.to(words.device))

    def select(self, scores: Tensor) -> Tensor:
        """Equation 7, with score noise and forced prompts: scores [B, K] → int64 [B]."""
        if self.force_prompt >= 0:
            return scores.new_full(scores.shape[:1], self.force_prompt, dtype=torch.long)
        if self.score_noise and not self.training:
            scores = scores + self.score_noise * torch.randn_like(scores)
        return select(scores)

    def _embed_contexts(self, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """Return (word embeddings [B, T, D], mask bool [B, T]) of contexts int64 [B, T]."""
        contexts = contexts.to(self.llm.device)
        return self.llm.embed(contexts.clamp(min=0)), contexts >= 0

    def _select_by_means(self, means: Tensor) -> Selection:
        """Score and select prompts by the means of the contexts' word embeddings, float32 [B, D]."""
        scores = self.scores(means)
        return Selection(scores, self.select(scores))

    def scores(self, means: Tensor) -> Tensor:
        """Score every prompt for contexts of which the means of the word embeddings are given: [B, D] → [B, K]."""
        prompts = self.soft_prompts.tokens
        if self.retriever is None:
            return prompts.new_zeros(len(means), len(prompts))
        return self.retriever(means.to(prompts), prompts)

    # ---- decoding, as ParlAI's search calls it --------------------------------------------------------

    def encoder(
        self, contexts: Tensor, scored: Tensor | None = None, selection: Selection | None = None
    ) -> DecodingState:
        """Run [sp ; c] once for each context, int64 [B, T], right-padded. scored, selection: as in `forward`."""
        words, mask = self._embed_contexts(contexts)
        if selection is None and scored is not None:
            selection = self.retrieve(scored)
        elif selection is None:
            selection = self._select_by_means(context_mean(words, mask))
        rows, row_mask = join_chosen(self.soft_prompts.tokens[selection.selected], words, mask)
        logits, cache = self.llm.prefill(rows, row_mask)
        return DecodingState(logits, cache, row_mask, selection.scores, selection.selected)

    def decoder(self, ids: Tensor, encoded: DecodingState, state: DecodingState | None = None):
        """Predict the next token of each reply; the first one is predicted by `encoder` already.

        :param ids: int64 [R, steps], the replies so far, with the start token.
        :return: (logits [R, 1, V] in the LM's dtype, the state for the next step).
        """
        if state is None:
            return encoded.logits[:, None], encoded
        state = state.extended(state.mask.new_ones(len(ids), 1))
        logits, state.cache = self.llm.decode(ids[:, -1:].clamp(min=0).to(self.llm.device), state.mask, state.cache)
        return logits, state

    def decode_forced(self, encoded: DecodingState, ys: Tensor) -> tuple[Tensor, Tensor]:
        """Predict every token of given replies.

        :param ys: int64 [R, U], right-padded with negative ids.
        :return: (logits [R, U, V] in the LM's dtype, likeliest tokens int64 [R, U]).
        """
        logits = encoded.logits[:, None]
        if ys.shape[1] > 1:
            inputs = ys[:, :-1].to(self.llm.device)
            state = encoded.reordered(torch.arange(len(ys), device=encoded.logits.device)).extended(inputs >= 0)
            rest, _ = self.llm.decode(inputs.clamp(min=0), state.mask, state.cache)
            logits = torch.cat([logits, rest], dim=1)
        return logits, logits.argmax(-1)

    def output(self, logits: Tensor) -> Tensor:
        """Return a float32 copy of the decoder's logits, because ParlAI's search changes them in place.

        A reply may end at any of several tokens, and a search knows one: it gets the logit of them all (see
        `end_temperature`), and the others cannot be chosen.
        """
        logits = logits.to(torch.float32, copy=True)
        if self.other_ends:
            ends, t = logits[..., [self.END_IDX, *self.other_ends]], self.end_temperature
            logits[..., self.END_IDX] = t * (ends / t).logsumexp(-1) if t else ends.amax(-1)
            logits[..., self.other_ends] = neginf(logits.dtype)
        return logits

    def reorder_encoder_states(self, encoder_states: DecodingState, indices) -> DecodingState:
        return encoder_states.reordered(torch.as_tensor(indices, device=encoder_states.logits.device))

    def reorder_decoder_incremental_state(self, incremental_state: DecodingState, inds: Tensor) -> DecodingState:
        inds = inds.to(incremental_state.logits.device)
        if torch.equal(inds, torch.arange(len(incremental_state.mask), device=inds.device)):
            return incremental_state
        return incremental_state.reordered(inds)
