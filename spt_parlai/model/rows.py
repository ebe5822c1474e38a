"""How a soft prompt joins its context: [sp_i ; c_n ; y_n] as padded rows of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class TokenRows(NamedTuple):
    """B examples in R rows of M columns, padded on the right: a row's examples share its beginning.

    ids: int64 [R, M], 0 at padding; mask: bool [R, M]; row: int64 [B], the row of each example, whose context is the row's
    first context_length, int64 [B], tokens; targets: int64 [N], all examples' target tokens in order; example: int64 [N],
    whose each is; column: int64 [N], the column whose output predicts it.
    """

    ids: Tensor
    mask: Tensor
    row: Tensor
    context_length: Tensor
    targets: Tensor
    example: Tensor
    column: Tensor


def token_rows(
    contexts: Tensor, targets: Tensor, row: Tensor | None = None, context_length: Tensor | None = None
) -> TokenRows:
    """contexts int64 [R, T] and targets int64 [B, U], right-padded with negative ids → rows of c then y[:-1].

    Without `row` each example has its own context. With row and context_length, int64 [B], rows are shared: a row of
    `contexts` is its last example's context, which begins with those of its other examples, and their targets.
    """
    in_context, in_target = contexts >= 0, targets >= 0
    longest, target_length = in_context.sum(1), in_target.sum(1)  # [R], [B]
    if row is None or context_length is None:
        row, context_length = torch.arange(len(contexts), device=contexts.device), longest
    order = torch.arange(len(targets), device=targets.device)
    last = torch.zeros_like(longest).scatter_reduce(
        0, row, order, 'amax', include_self=False
    )  # [R], each row's last example
    length = longest + target_length[last] - 1
    columns = torch.arange(int(length.max()), device=contexts.device)[None]  # [1, M]
    mask = columns < length[:, None]
    of_context = columns < longest[:, None]
    not_last = torch.arange(targets.shape[1], device=targets.device)[None] < target_length[last, None] - 1
    ids = torch.zeros_like(mask, dtype=torch.long)
    ids[of_context] = contexts[in_context]
    ids[mask & ~of_context] = targets[last][not_last]
    example, offset = in_target.nonzero(as_tuple=True)
    return TokenRows(ids, mask, row, context_length, targets[in_target], example, context_length[example] - 1 + offset)


def rows_of_like_length(lengths: Sequence[int], at_once: int) -> list[tuple[list[int], int]]:
    """Rows to run together, padding and all at most `at_once` tokens (a row alone may be longer): [(their numbers, their greatest
    length)], the longest first.

    Once there is a quarter of that, only a row of at least nine tenths of the longest one's length joins.
    """
    parts: list[tuple[list[int], int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if parts:
            rows, longest = parts[-1]
            tokens = len(rows) * longest
            if tokens + longest <= at_once and (4 * tokens < at_once or 10 * lengths[row] >= 9 * longest):
                rows.append(row)
                continue
        parts.append(([row], lengths[row]))
    return parts


class RowGroup(NamedTuple):
    """Some rows of a batch. number: int64 [r], which; token: int64 [n], the numbers of their target tokens; rows: they alone, cut
    to the longest of them, still with the batch's numbers of examples (`row` is −1 for an example of another group)."""

    number: Tensor
    token: Tensor
    rows: TokenRows


def row_groups(rows: TokenRows, prompt_length: int, at_once: int) -> list[RowGroup]:
    """Rows of like length together, each with its soft prompt: at most `at_once` tokens a group."""
    device, groups = rows.ids.device, []
    lengths = rows.mask.sum(1) + prompt_length
    for numbers, longest in rows_of_like_length(lengths.tolist(), at_once):
        number = torch.tensor(numbers, device=device)
        place = torch.full((len(rows.ids),), -1, device=device)
        place[number] = torch.arange(len(number), device=device)
        token = (place[rows.row[rows.example]] >= 0).nonzero()[:, 0]
        width = longest - prompt_length
        groups.append(
            RowGroup(
                number,
                token,
                TokenRows(
                    rows.ids[number, :width],
                    rows.mask[number, :width],
                    place[rows.row],
                    rows.context_length,
                    rows.targets[token],
                    rows.example[token],
                    rows.column[token],
                ),
            )
        )
    return groups


def join_all(soft_prompts: Tensor, words: Tensor) -> Tensor:
    """Every prompt before every row: [K, L, D], [R, M, D] → [K·R, L + M, D]."""
    K, L, D = soft_prompts.shape
    R, M, _ = words.shape
    rows = [soft_prompts.to(words)[:, None].expand(K, R, L, D), words[None].expand(K, R, M, D)]
    return torch.cat(rows, dim=2).reshape(K * R, L + M, D)


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
    """Flat positions in [K·R, L + M] of the outputs that predict the targets: int64 [K·N], prompt by prompt."""
    R, M = rows.ids.shape
    width = prompt_length + M
    first = rows.row[rows.example] * width + prompt_length + rows.column  # [N], of prompt 0
    prompt = torch.arange(num_prompts, device=first.device)[:, None] * (R * width)
    return (prompt + first[None]).flatten()
