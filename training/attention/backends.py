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
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

from pipeline.base.errors import ConfigError
from pipeline.base.words import first_line
from training.attention.reference import segment_attention
from training.attention.settings import UNLIMITED, AttentionSettings, UnsupportedAttentionError

GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
"""How torch is told of fewer heads of keys and values; 2.11 takes them unasked."""

HALVES = (torch.float16, torch.bfloat16)

KERNEL_DEVICES = ("cuda",)
"""Types of devices that have kernels."""

WIDEST = 256
"""Head dimension that the kernels have at most."""


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
def tried(name: str, device: torch.device) -> str | None:
    """Why a few tokens fail on a device: a package may be there and not fit the GPU, the driver or torch."""
    if device.type not in KERNEL_DEVICES:
        return f"its kernels need CUDA, not {device.type}"
    tokens = torch.zeros(4, 1, 64, dtype=torch.bfloat16, device=device)
    cu_seqlens = torch.tensor([0, 1, 4], dtype=torch.int32, device=device)
    try:
        BACKENDS[name].attend(tokens, tokens, tokens, cu_seqlens, 3, AttentionSettings())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except (ImportError, OSError, RuntimeError, NotImplementedError) as error:
        return first_line(error)
    return None


@dataclass(frozen=True)
class _Inputs:
    """Queries, keys and values as the kernels want them."""

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    """It is that of the head dimension before it was filled up."""


def _for_kernel(backend: str, query: Tensor, key: Tensor, value: Tensor, settings: AttentionSettings) -> _Inputs:
    """Tensors in half precision, under autocast also those that a model keeps in float32; of one width, which is a
    multiple of 8: zeros are filled in, which change no score."""
    dtype = query.dtype
    if dtype not in HALVES or len({query.dtype, key.dtype, value.dtype}) > 1:
        kind = query.device.type
        if not torch.is_autocast_enabled(kind):
            raise UnsupportedAttentionError(
                f"{backend} computes in bfloat16 or float16, and the model gives it {dtype}: compute the forward pass"
                " in bfloat16 (--dtype bfloat16; train_step(…, autocast=torch.bfloat16)), or choose the backend sdpa"
            )
        dtype = torch.get_autocast_dtype(kind)
    widest = max(query.shape[2], value.shape[2])
    if widest > WIDEST:
        raise UnsupportedAttentionError(
            f"{backend} takes head dimensions up to {WIDEST}, and the model has {widest}: choose the backend sdpa"
        )
    width = -(-widest // 8) * 8
    q, k, v = (_filled(each.to(dtype), width) for each in (query, key, value))
    return _Inputs(q, k, v, query.shape[2] ** -0.5 if settings.scale is None else settings.scale)


def _filled(tensor: Tensor, width: int) -> Tensor:
    missing = width - tensor.shape[2]
    return functional.pad(tensor, (0, missing)) if missing else tensor  # padding by nothing would copy


def _flash_attn(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_length: int, settings: AttentionSettings
) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # noqa: PLC0415 - not everywhere

    if settings.sinks is not None:
        raise UnsupportedAttentionError("flash-attn has no attention sinks: choose the backend sdpa")
    if settings.softcap and settings.dropout:
        raise UnsupportedAttentionError(
            "flash-attn has no dropout beside softcap: choose sdpa, or set the model's attention dropout to 0"
        )
    inputs = _for_kernel("flash-attn", query, key, value, settings)
    attended: Tensor = flash_attn_varlen_func(
        inputs.query,
        inputs.key,
        inputs.value,
        cu_seqlens,
        cu_seqlens,
        max_length,
        max_length,
        dropout_p=settings.dropout,
        softmax_scale=inputs.scale,
        causal=settings.causal,
        window_size=settings.window_size,
        softcap=settings.softcap,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return attended[..., : value.shape[2]]


def _torch_varlen(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_length: int, settings: AttentionSettings
) -> Tensor:
    for lacks, what in (
        (settings.sinks is not None, "attention sinks: choose the backend sdpa"),
        (settings.softcap, "softcap: choose flash-attn or sdpa"),
        (settings.dropout, "dropout: choose flash-attn or sdpa, or set the model's attention dropout to 0"),
    ):
        if lacks:
            raise UnsupportedAttentionError(f"torch-varlen has no {what}")
    inputs = _for_kernel("torch-varlen", query, key, value, settings)
    left, right = settings.window_size
    attended = varlen_attn(
        inputs.query,
        inputs.key,
        inputs.value,
        cu_seqlens,
        cu_seqlens,
        max_length,
        max_length,
        scale=inputs.scale,
        window_size=(left, 0 if settings.causal else right),
        **GROUPED,
    )
    assert isinstance(attended, Tensor)
    return attended[..., : value.shape[2]]


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_length: int, settings: AttentionSettings
) -> Tensor:
    return segment_attention(query, key, value, cu_seqlens, settings)


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("flash-attn", lambda device: tried("flash-attn", device), _flash_attn),
        Backend("torch-varlen", lambda device: tried("torch-varlen", device), _torch_varlen),
        Backend("sdpa", lambda _: None, _sdpa),
    )
}
"""From the fastest to the one that always runs."""
