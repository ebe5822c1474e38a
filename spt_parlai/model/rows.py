"""How a soft prompt joins its context: [sp_i ; c_n ; y_n] as padded rows of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class TokenRows(NamedTuple):
    """B examples in R rows of M columns, padded on the right. Examples that share a row share its beginning.

    ids: int64 [R, M], 0 at padding; mask: bool [R, M];
    row: int64 [B], each example's row; context_length: int64 [B], how many of the row's first tokens are its context;
    targets: int64 [N], the target tokens of all examples in order; example: int64 [N], each target token's example;
    column: int64 [N], the column whose output predicts it.
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
    """contexts int64 [R, T] and targets int64 [B, U], right-padded with negative ids → rows of c followed by y[:-1].

    Without `row` each example has its own row. With row and context_length, int64 [B], examples share rows: each row of
    `contexts` is the context of its last example, which begins with the contexts and targets of the row's other
    examples.
    """
    in_context, in_target = contexts >= 0, targets >= 0
    longest, target_length = in_context.sum(1), in_target.sum(1)  # [R], [B]
    if row is None or context_length is None:
        row, context_length = torch.arange(len(contexts), device=contexts.device), longest
    order = torch.arange(len(targets), device=targets.device)
    # [R], each row's last example
    last = torch.zeros_like(longest).scatter_reduce(0, row, order, 'amax', include_self=False)
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
    """Which rows run together: at most `at_once` tokens, padding included, unless a single row is longer.

    Once a part has a quarter of `at_once`, only rows of at least nine tenths of its greatest length join it.
    Returns [(row numbers, their greatest length)], the longest first.
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
    """Some rows of a batch.

    number: int64 [r], their numbers in the batch; token: int64 [n], the numbers of their target tokens;
    rows: these rows only, cut to the longest. Examples keep their numbers; `row` is −1 for those of other groups.
    """

    number: Tensor
    token: Tensor
    rows: TokenRows


def row_groups(rows: TokenRows, prompt_length: int, at_once: int) -> list[RowGroup]:
    """Groups of rows of similar length, with at most `at_once` tokens per group, counting one soft prompt per row."""
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
    """Each example's own prompt before its context, with the padding on the left, so that all rows end together.

    chosen [B, L, D], words [B, M, D] right-padded, mask bool [B, M] → ([B, L + M, D], bool [B, L + M]).
    """
    rows = torch.cat([chosen.to(words), words], dim=1)
    mask = torch.cat([mask.new_ones(mask.shape[0], chosen.shape[1]), mask], dim=1)
    width = mask.shape[1]
    padding = width - mask.sum(1, keepdim=True)  # [B, 1]
    source = (torch.arange(width, device=mask.device)[None] - padding) % width
    return rows.gather(1, source[..., None].expand_as(rows)), mask.gather(1, source)


def target_positions(rows: TokenRows, num_prompts: int, prompt_length: int) -> Tensor:
    """Flat positions in [K·R, L + M] of the outputs that predict the targets: int64 [K·N], prompt after prompt."""
    R, M = rows.ids.shape
    width = prompt_length + M
    first = rows.row[rows.example] * width + prompt_length + rows.column  # [N], of prompt 0
    prompt = torch.arange(num_prompts, device=first.device)[:, None] * (R * width)
    return (prompt + first[None]).flatten()


def first_of_targets(rows: TokenRows, here: Tensor) -> Tensor:
    """Where in a bool [k, n] over prompts and target tokens the first token of each target is true: int64 [m], flat."""
    return (here & (rows.column == rows.context_length[rows.example] - 1)).flatten().nonzero()[:, 0]
