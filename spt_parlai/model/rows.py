"""How a soft prompt joins its context: [sp_i ; c_n ; y_n] as padded rows of embeddings."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TokenRows(NamedTuple):
    """Contexts and shifted targets of B examples, right-padded to M columns.

    ids: int64 [B, M], 0 at padding; mask: bool [B, M]; context: bool [B, M], true at context tokens;
    targets: int64 [N], all examples' target tokens in order; example: int64 [N], whose each is;
    column: int64 [N], the column whose output predicts it.
    """

    ids: Tensor
    mask: Tensor
    context: Tensor
    targets: Tensor
    example: Tensor
    column: Tensor


def token_rows(contexts: Tensor, targets: Tensor) -> TokenRows:
    """contexts int64 [B, T] and targets int64 [B, U], right-padded with negative ids → rows of c_n then y_n[:-1]."""
    in_context, in_target = contexts >= 0, targets >= 0
    context_length, target_length = in_context.sum(1), in_target.sum(1)
    length = context_length + target_length - 1
    columns = torch.arange(int(length.max()), device=contexts.device)[None]  # [1, M]
    mask = columns < length[:, None]
    context = columns < context_length[:, None]
    not_last = torch.arange(targets.shape[1], device=targets.device)[None] < target_length[:, None] - 1
    ids = torch.zeros_like(mask, dtype=torch.long)
    ids[context] = contexts[in_context]
    ids[mask & ~context] = targets[not_last]
    example, offset = in_target.nonzero(as_tuple=True)
    return TokenRows(ids, mask, context, targets[in_target], example, context_length[example] - 1 + offset)


def join_all(soft_prompts: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Every prompt before every example: [K, L, D], [B, M, D], bool [B, M] → ([K·B, L + M, D], bool [K·B, L + M])."""
    K, L, D = soft_prompts.shape
    B, M, _ = words.shape
    rows = torch.cat(
        [soft_prompts.to(words)[:, None].expand(K, B, L, D), words[None].expand(K, B, M, D)], dim=2
    ).reshape(K * B, L + M, D)
    prompt_mask = mask.new_ones(B, L)
    return rows, torch.cat([prompt_mask, mask], dim=1).repeat(K, 1)


def join_chosen(chosen: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Each example's own prompt before its context, padding on the left (all rows end together, ready to decode).

    chosen [B, L, D], words [B, M, D] right-padded, mask bool [B, M] → ([B, L + M, D], bool [B, L + M]).
    """
    rows = torch.cat([chosen.to(words), words], dim=1)
    mask = torch.cat([mask.new_ones(mask.shape[0], chosen.shape[1]), mask], dim=1)
    width = mask.shape[1]
    padding = width - mask.sum(1, keepdim=True)  # [B, 1]
    source = (torch.arange(width, device=mask.device)[None] - padding) % width
    return rows.gather(1, source[..., None].expand_as(rows)), mask.gather(1, source)


def target_positions(rows: TokenRows, num_prompts: int, prompt_length: int) -> Tensor:
    """Flat positions in [K·B, L + M] of the outputs that predict the targets: int64 [K·N], prompt by prompt."""
    B, M = rows.ids.shape
    width = prompt_length + M
    first = rows.example * width + prompt_length + rows.column  # [N], of prompt 0
    prompt = torch.arange(num_prompts, device=first.device)[:, None] * (B * width)
    return (prompt + first[None]).flatten()
