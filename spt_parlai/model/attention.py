"""Attention of one new token on CPUs, for LLMs whose query heads share keys and values in groups."""

from __future__ import annotations

import torch.nn.functional as F


def share_keys_within_groups() -> None:
    """Let transformers' `sdpa` attention read a group's keys and values once for all its query heads, on CPUs.

    For one new token a row, torch's kernel reads them anew for each head, in bfloat16 at 6 times the cost. The heads of
    a group become query positions instead, which is the same computation. A second call changes nothing.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, **kwargs):
        R, H, S, _ = query.shape
        G = key.shape[1]
        masked_alike = attention_mask is None or attention_mask.shape[1:3] == (1, 1)
        plain = not dropout and all(kwargs.get(name) is None for name in ('position_bias', 'cache', 'softcap'))
        if S > 1 or H == G or query.device.type != 'cpu' or not (masked_alike and plain):
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout, scaling=scaling, is_causal=is_causal, **kwargs
            )
        heads = query.reshape(R, G, H // G, -1)
        output = F.scaled_dot_product_attention(heads, key, value, attn_mask=attention_mask, scale=scaling)
        return output.reshape(R, 1, H, -1), None

    AttentionInterface.register('sdpa', attend)
