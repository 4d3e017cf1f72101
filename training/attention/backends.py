"""Attention over segments laid end to end, behind one signature: that of FlashAttention's varlen function.

Three backends compute the same: `flash-attn` (the package), `torch-varlen` (the same kernels inside torch) and `sdpa`
(segment by segment, on any device; the reference). What one of them cannot do it refuses.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pipeline.base.errors import ConfigError
from pipeline.base.words import first_line
from training.attention.reference import segment_attention
from training.attention.settings import UNLIMITED, AttentionSettings, UnsupportedAttentionError

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    _VARLEN_PARAMETERS: frozenset[str] = frozenset()
else:
    _VARLEN_PARAMETERS = frozenset(inspect.signature(varlen_attn).parameters)  # they differ between versions

HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Backend:
    """One way to compute attention."""

    name: str
    why_not: Callable[[torch.device], str | None]
    """Why it does not run on a device; None where it does."""

    attend: Callable[[Tensor, Tensor, Tensor, Tensor, int, AttentionSettings], Tensor]
    """Takes queries, keys, values, cu_seqlens, tokens of the longest segment, and what a model wants besides."""


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = UNLIMITED,
    softcap: float = 0.0,
    *,
    sinks: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention within each segment, called as `flash_attn_varlen_func`.  # shape: (num_tokens, num_heads, value_dim)

    q, k, v: heads of keys and values may be fewer by a whole factor.  # shape: (num_tokens, num_heads, dim)
    cu_seqlens_q: int32, where segments begin, and the end; repeated values are empty segments. Queries and keys are the
        same tokens, so cu_seqlens_k and max_seqlen_k are as those of the queries.
    max_seqlen_q: tokens of the longest segment, or more.
    The rest is as in `AttentionSettings`.

    Raises `UnsupportedAttentionError` for what the backend cannot do.
    """
    if k.shape[0] != q.shape[0] or cu_seqlens_k.shape != cu_seqlens_q.shape or max_seqlen_k != max_seqlen_q:
        raise UnsupportedAttentionError("queries and keys have to be the same tokens, in the same segments")
    settings = AttentionSettings(
        dropout=dropout_p, scale=softmax_scale, causal=causal, window_size=window_size, softcap=softcap, sinks=sinks
    )
    chosen = choose_backend(backend, q.device)[0] if backend == "auto" else backend
    return BACKENDS[chosen].attend(q, k, v, cu_seqlens_q, max_seqlen_q, settings)


def choose_backend(wanted: str, device: torch.device) -> tuple[str, str]:
    """(name, why): the backend to use on a device; for `auto` the fastest that runs there.

    Raises `ConfigError` if the wanted one does not exist or does not run.
    """
    if wanted != "auto":
        if wanted not in BACKENDS:
            raise ConfigError(f"there is no attention backend {wanted!r}: auto, {', '.join(BACKENDS)}")
        reason = BACKENDS[wanted].why_not(device)
        if reason is not None:
            raise ConfigError(f"the attention backend {wanted} does not run here: {reason}")
        return wanted, "as requested"
    refused: list[str] = []
    for backend in BACKENDS.values():
        reason = backend.why_not(device)
        if reason is None:
            return backend.name, "; ".join(refused) or "the fastest"
        refused.append(f"{backend.name}: {reason}")
    raise AssertionError("sdpa runs anywhere")


@cache
def _tried(name: str, device: torch.device) -> str | None:
    """Why a few tokens fail on a device: a package may be there and not fit the GPU, the driver or torch."""
    if device.type != "cuda":
        return f"its kernels need CUDA, not {device.type}"
    tokens = torch.zeros(4, 1, 64, dtype=torch.bfloat16, device=device)
    cu_seqlens = torch.tensor([0, 1, 4], dtype=torch.int32, device=device)
    try:
        BACKENDS[name].attend(tokens, tokens, tokens, cu_seqlens, 3, AttentionSettings())
        torch.cuda.synchronize(device)
    except (ImportError, OSError, RuntimeError, NotImplementedError) as error:
        return first_line(error)
    return None


def _halved(backend: str, tensors: list[Tensor]) -> list[Tensor]:
    """Tensors in half precision, under autocast also those that a model keeps in float32."""
    dtype = tensors[0].dtype
    if dtype not in HALVES or len({each.dtype for each in tensors}) > 1:
        kind = tensors[0].device.type
        if not torch.is_autocast_enabled(kind):
            raise UnsupportedAttentionError(
                f"{backend} computes in bfloat16 or float16, and the model gives it {dtype}: train in bfloat16, or"
                " choose the backend sdpa"
            )
        dtype = torch.get_autocast_dtype(kind)
    return [each.to(dtype) for each in tensors]


def _same_width(value: Tensor, head_dim: int) -> Tensor:
    """Values filled up with zeros to the width of queries, as the kernels want them."""
    return torch.nn.functional.pad(value, (0, head_dim - value.shape[2])) if value.shape[2] < head_dim else value


def _flash_attn(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_length: int, settings: AttentionSettings
) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # noqa: PLC0415 - not everywhere

    if settings.sinks is not None:
        raise UnsupportedAttentionError("flash-attn has no attention sinks: choose the backend sdpa")
    q, k, v = _halved("flash-attn", [query, key, _same_width(value, query.shape[2])])
    attended: Tensor = flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens,
        cu_seqlens,
        max_length,
        max_length,
        dropout_p=settings.dropout,
        softmax_scale=settings.scale,
        causal=settings.causal,
        window_size=settings.window_size,
        softcap=settings.softcap,
    )
    return attended[..., : value.shape[2]]


def _torch_varlen(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_length: int, settings: AttentionSettings
) -> Tensor:
    if not _VARLEN_PARAMETERS:
        raise ImportError(f"torch {torch.__version__} has no varlen attention; torch 2.11 has")
    for lacks, what in (
        (settings.sinks is not None, "attention sinks: choose the backend sdpa"),
        (settings.softcap, "softcap: choose flash-attn or sdpa"),
        (settings.dropout, "dropout: choose flash-attn or sdpa, or set the model's attention dropout to 0"),
    ):
        if lacks:
            raise UnsupportedAttentionError(f"torch-varlen has no {what}")
    q, k, v = _halved("torch-varlen", [query, key, _same_width(value, query.shape[2])])
    options: dict[str, Any] = {"scale": settings.scale}
    left, right = settings.window_size
    if "window_size" in _VARLEN_PARAMETERS:
        options["window_size"] = (left, 0 if settings.causal else right)
    elif settings.window_size == UNLIMITED:
        options["is_causal"] = settings.causal
    else:
        raise UnsupportedAttentionError(f"torch-varlen of torch {torch.__version__} has no window: torch 2.13 has")
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in _VARLEN_PARAMETERS:
            options["enable_gqa"] = True
        else:
            groups = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    attended = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_length, max_length, **options)
    assert isinstance(attended, Tensor)
    return attended[..., : value.shape[2]]


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_length: int, settings: AttentionSettings
) -> Tensor:
    return segment_attention(query, key, value, cu_seqlens, settings)


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("flash-attn", lambda device: _tried("flash-attn", device), _flash_attn),
        Backend("torch-varlen", lambda device: _tried("torch-varlen", device), _torch_varlen),
        Backend("sdpa", lambda _: None, _sdpa),
    )
}
"""From the fastest to the one that always runs."""
