"""Attention over segments one by one: slow, exact, on any device. What every kernel is compared with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.attention.settings import AttentionSettings


def segment_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, settings: AttentionSettings
) -> Tensor:
    """Attention within each segment.  # shape: (num_tokens, num_heads, value_dim)

    query: # shape: (num_tokens, num_heads, head_dim)
    key: # shape: (num_tokens, num_kv_heads, head_dim); value may be wider or narrower.
    cu_seqlens: segments without a token are passed over.  # shape: (num_segments + 1,)

    Waits for the device, to know where segments begin. Memory grows with the square of the longest segment where there
    is a window, a softcap or a sink. torch.compile cannot wait: under it this is one attention with a mask, and memory
    grows with the square of num_tokens.
    """
    if torch.compiler.is_compiling():
        at = torch.arange(query.shape[0], device=query.device)
        segment = torch.searchsorted(cu_seqlens, at, right=True)
        return _attend(query, key, value, _seen(query, settings) & (segment[:, None] == segment[None, :]), settings)
    lengths = cu_seqlens.diff().tolist()
    plain = not settings.softcap and settings.sinks is None and max(settings.window_size) < 0
    outputs = [
        _attend(q, k, v, None if plain else _seen(q, settings), settings)
        # Not slices, the gradient of each of which would be as long as all tokens.
        for q, k, v in zip(*(torch.split(each, lengths) for each in (query, key, value)), strict=True)
        if len(q)
    ]
    return torch.cat(outputs) if outputs else query.new_zeros(0, query.shape[1], value.shape[2])


def _attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, settings: AttentionSettings) -> Tensor:
    """seen: which keys each query sees; None for all, or all before it.  # shape: (num_tokens, num_tokens)"""
    q, k, v = (each.transpose(0, 1)[None] for each in (query, key, value))
    scale = query.shape[2] ** -0.5 if settings.scale is None else settings.scale
    if settings.softcap or settings.sinks is not None:
        assert seen is not None
        return _written_out(q, k, v, seen, scale, settings)[0].transpose(0, 1)
    attended = functional.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=seen,
        dropout_p=settings.dropout,
        is_causal=settings.causal and seen is None,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended[0].transpose(0, 1)


def _written_out(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float, settings: AttentionSettings) -> Tensor:
    """Attention by its formula.  # shape: (1, num_heads, length, value_dim)"""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q @ k.transpose(2, 3) * scale).float()
    if settings.softcap:
        scores = settings.softcap * torch.tanh(scores / settings.softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    if settings.sinks is not None:
        sinks = settings.sinks.float()[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=3)
    weights = scores.softmax(3)[..., : k.shape[2]]
    return functional.dropout(weights, settings.dropout).to(v.dtype) @ v


def _seen(query: Tensor, settings: AttentionSettings) -> Tensor:
    """Which keys each query would see in one segment.  # shape: (num_tokens, num_tokens)"""
    at = torch.arange(query.shape[0], device=query.device)
    ahead = at[None, :] - at[:, None]
    left, right = settings.window_size
    if settings.causal:
        right = 0
    seen = ahead <= right if right >= 0 else torch.ones_like(ahead, dtype=torch.bool)
    return seen & (ahead >= -left) if left >= 0 else seen
