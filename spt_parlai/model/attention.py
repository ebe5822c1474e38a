"""Attention on CPUs where matrix products are faster than torch's kernel, in the `sdpa` attention of transformers.

* One new token, for LLMs whose query heads share keys and values in groups: a group's keys are read once.
* The backward pass in bfloat16: torch's kernel (2.13) takes 1.2 to 5 times as long as these products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 128  # query positions at once: the scores stay in the cache, and half of the masked ones are never computed

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def attend_by_products() -> None:
    """Let transformers' `sdpa` attention use this module on CPUs wherever it applies. A second call changes nothing."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, **kwargs):
        H, S, G = query.shape[1], query.shape[2], key.shape[1]
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        plain = not dropout and all(kwargs.get(name) is None for name in ('position_bias', 'cache', 'softcap'))
        if plain and query.device.type == 'cpu':
            if S == 1 and H != G and (attention_mask is None or attention_mask.shape[1:3] == (1, 1)):
                return one_token(query, key, value, attention_mask, scale), None
            causal = attention_mask is None and (getattr(module, 'is_causal', True) if is_causal is None else is_causal)
            if causal and S > 1 and trains_in_bfloat16(query, key, value):
                return causal_attention(query, key, value, scale).transpose(1, 2), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )

    AttentionInterface.register('sdpa', attend)


def one_token(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention of one new token a row, which reads the keys and values of a group once for all its query heads.

    torch's kernel reads them anew for each head, in bfloat16 at 6 times the cost. The heads of a group become query
    positions instead. query [R, H, 1, D], key and value [R, G, T, D] → [R, 1, H, D].
    """
    R, H, _, D = query.shape
    heads = query.reshape(R, key.shape[1], -1, D)
    return F.scaled_dot_product_attention(heads, key, value, attn_mask=mask, scale=scale).reshape(R, 1, H, -1)


def trains_in_bfloat16(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether a gradient will be needed, in bfloat16, of rows whose keys are their own."""
    return (
        torch.is_grad_enabled()
        and query.requires_grad
        and query.dtype == torch.bfloat16
        and query.shape[2:] == key.shape[2:] == value.shape[2:]
    )


@torch.compiler.disable  # its loop would be compiled anew for every length
def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """See `CausalAttention`."""
    return CausalAttention.apply(query, key, value, scale)


class CausalAttention(torch.autograd.Function):
    """Causal attention whose forward pass is torch's kernel and whose backward pass is matrix products.

    query [R, H, T, D], key and value [R, G, T, D] in bfloat16, where H is a multiple of G → [R, H, T, D].

    With P = exp(scale · q·kᵀ − logsumexp) and δ = rowsum(do ∘ o): dv = Pᵀ do, ds = P ∘ (do·vᵀ − δ), dq = scale · ds k
    and dk = scale · dsᵀ q. Logsumexp and δ are two further columns of q and do (the number, and what rounding took from
    it) against columns of −1, so that the products subtract them in float32, before anything is rounded.
    """

    @staticmethod
    def forward(ctx, query, key, value, scale):
        output, logsumexp = _forward(query, key, value, 0.0, True, scale=scale)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.scale = scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        query, key, value, output, logsumexp = ctx.saved_tensors
        (R, H, T, D), G, scale = query.shape, key.shape[1], ctx.scale
        delta = (upstream.float() * output).sum(-1)  # [R, H, T]
        q, do = (
            torch.cat([rows, _in_two(numbers, rows.dtype)], dim=-1).reshape(R * G, H // G, T, D + 2)
            for rows, numbers in ((query, logsumexp / scale), (upstream, delta))
        )
        k, v = key.reshape(R * G, T, D), value.reshape(R * G, T, D)
        nothing, minus = k.new_zeros(1, 1, 1), k.new_full((R * G, T, 2), -1.0)
        k_columns, v_columns = (torch.cat([rows, minus], dim=-1).transpose(1, 2) for rows in (k, v))
        dq = torch.empty_like(q[..., :D])
        dk, dv = (torch.zeros(k.shape, dtype=torch.float32) for _ in range(2))
        for start in range(0, T, BLOCK):
            end = min(start + BLOCK, T)
            shape = (R * G, (H // G) * (end - start), D + 2)  # the heads of a group are rows of one product
            q_rows, do_rows = (rows[:, :, start:end].reshape(shape) for rows in (q, do))
            p = torch.baddbmm(nothing, q_rows, k_columns[:, :, :end], beta=0, alpha=scale).exp_()
            p.view(R * G, H // G, end - start, end).tril_(start)
            ds = torch.bmm(do_rows, v_columns[:, :, :end]).mul_(p)
            dq[:, :, start:end] = torch.bmm(ds, k[:, :end]).view(R * G, H // G, end - start, D)
            dv[:, :end] += torch.bmm(p.transpose(1, 2), do_rows[..., :D])
            dk[:, :end] += torch.bmm(ds.transpose(1, 2), q_rows[..., :D])
        return dq.mul_(scale).view_as(query), dk.mul_(scale).to(k.dtype).view_as(key), dv.to(k.dtype).view_as(key), None


def _in_two(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Float32 numbers [...] as two of a shorter dtype with nearly the same sum, [..., 2]."""
    high = numbers.to(dtype)
    return torch.stack([high, (numbers - high.float()).to(dtype)], dim=-1)
