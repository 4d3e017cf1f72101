"""Stand-ins for the attention kernels of FlashAttention and of torch, which run on a CPU.

They have the exact signatures, refuse whatever the C++ of flash-attn 2.8.3 and of torch refuses (and copies that it
would make unasked), and compute by the formula, forward and backward, in float32. Like the kernels they are in half
precision, and no backward pass is the same twice in its last bits, unless a deterministic one is asked for. They prove
that we call kernels as they want to be called; how fast and how exact the real ones are, they cannot tell.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from types import ModuleType
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from tests.training.waiting import exempt
from training.attention import backends

KernelName = Literal["flash-attn", "torch-varlen", "torch-varlen 2.11"]
KERNELS: tuple[KernelName, ...] = ("flash-attn", "torch-varlen", "torch-varlen 2.11")
"""torch-varlen is that of the installed torch, behind its own Python function."""

CALLS: Counter[str] = Counter()
"""How often each kernel ran, forward; and backward, as "… backward" or "… deterministic backward"."""

NUMBERS: set[int] = set()
"""Numbers that the queries of a token had in kernels' backward passes, each head rounded up as they do."""


@dataclass(frozen=True)
class _Asked:
    """What of a call is no tensor."""

    kernel: str
    scale: float
    causal: bool
    window: tuple[int, int]
    softcap: float = 0.0
    kept: Tensor | None = None
    """Dropout: 1 / (1 - p) where a weight is kept.  # shape: (heads, num_tokens, num_tokens)"""

    def seen(self, length: int) -> Tensor:
        ahead = torch.arange(length)[None, :] - torch.arange(length)[:, None]
        left, right = self.window
        right = 0 if self.causal else right
        return (ahead <= (right if right >= 0 else length)) & (ahead >= (-left if left >= 0 else -length))


def _segments(cu_seqlens: Tensor) -> list[slice]:
    return [slice(begin, end) for begin, end in pairwise(cu_seqlens.tolist()) if end > begin]


def _weights(q: Tensor, k: Tensor, asked: _Asked) -> tuple[Tensor, Tensor | float]:
    """(softmax of the scores, derivative of softcap) of a segment.  # shape: (heads, length, length)"""
    scores = torch.einsum("ihd,jhd->hij", q, k) * asked.scale
    slope: Tensor | float = 1.0
    if asked.softcap:
        bent = torch.tanh(scores / asked.softcap)
        scores, slope = asked.softcap * bent, 1 - bent**2
    weights = scores.masked_fill(~asked.seen(len(q)), float("-inf")).softmax(2)
    return weights.nan_to_num(0.0), slope


def _forward(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, asked: _Asked) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    out = torch.zeros(q.shape, dtype=torch.float32)
    for at in _segments(cu_seqlens):
        weights, _ = _weights(q[at].float(), _spread(k[at], groups), asked)
        if asked.kept is not None:
            weights = weights * asked.kept[:, at, at]
        out[at] = torch.einsum("hij,jhd->ihd", weights, _spread(v[at], groups))
    return out.to(q.dtype)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, asked: _Asked, *, deterministic: bool
) -> tuple[Tensor, Tensor, Tensor]:
    assert grad.dtype == q.dtype, "gradients are of one dtype with queries"
    CALLS[f"{asked.kernel} {'deterministic ' if deterministic else ''}backward"] += 1
    numbers = q.shape[1] * -(-q.shape[2] // 32) * 32
    NUMBERS.add(numbers)
    assert (len(q) + 128 * (len(cu_seqlens) - 1)) * numbers < 2**31, "its numbers overflow"
    groups = q.shape[1] // k.shape[1]
    found = tuple(torch.zeros(each.shape, dtype=torch.float32) for each in (q, k, v))
    for at in _segments(cu_seqlens):
        queries, keys, values, outer = q[at].float(), _spread(k[at], groups), _spread(v[at], groups), grad[at].float()
        weights, slope = _weights(queries, keys, asked)
        kept = 1.0 if asked.kept is None else asked.kept[:, at, at]
        of_weights = torch.einsum("ihd,jhd->hij", outer, values) * kept
        of_scores = weights * (of_weights - (of_weights * weights).sum(2, keepdim=True)) * slope * asked.scale
        found[0][at] = torch.einsum("hij,jhd->ihd", of_scores, keys)
        found[1][at] = _gathered(torch.einsum("hij,ihd->jhd", of_scores, queries), groups)
        found[2][at] = _gathered(torch.einsum("hij,ihd->jhd", weights * kept, outer), groups)
    dq, dk, dv = found
    if not deterministic:  # sums in another order every time
        by_chance = torch.Generator().manual_seed(random.SystemRandom().getrandbits(32))
        dq = dq * (1 + torch.empty(dq.shape).uniform_(-(2**-9), 2**-9, generator=by_chance))
    return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)


def _spread(heads: Tensor, groups: int) -> Tensor:
    return heads.float().repeat_interleave(groups, 1)


def _gathered(heads: Tensor, groups: int) -> Tensor:
    length, _, width = heads.shape
    return heads.view(length, -1, groups, width).sum(2)


class _Attention(torch.autograd.Function):
    """A kernel behind autograd, unseen by dispatch modes."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, asked: _Asked, deterministic: Callable[[], bool]
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, cu_seqlens)
        ctx.asked, ctx.deterministic = asked, deterministic
        with exempt():
            return _forward(q, k, v, cu_seqlens, asked)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        with exempt():
            (grad,), (q, k, v, cu_seqlens) = gradients, ctx.saved_tensors
            found = _backward(grad, q, k, v, cu_seqlens, ctx.asked, deterministic=ctx.deterministic())
            return (*found, None, None, None)


def _attended(*arguments: Any) -> Tensor:
    attended = _Attention.apply(*arguments)  # type: ignore[no-untyped-call]
    assert isinstance(attended, Tensor)
    return attended


def _check(condition: object, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def _check_call(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int
) -> None:
    """What both refuse, with an error as from C++."""
    _check(q.dtype in (torch.float16, torch.bfloat16), "FlashAttention only support fp16 and bf16 data type")
    _check(q.dtype == k.dtype == v.dtype, "query, key and value must have the same dtype")
    _check(len({each.device for each in (q, k, v, cu_seqlens_q, cu_seqlens_k)}) == 1, "must be on one device")
    _check(q.ndim == k.ndim == v.ndim == 3, "must have three dimensions")
    _check(q.stride(2) == k.stride(2) == v.stride(2) == 1, "Input tensor must have contiguous last dimension")
    _check(q.shape[2] <= 256, "FlashAttention forward only supports head dimension at most 256")
    _check(k.shape[1] and q.shape[1] % k.shape[1] == 0, "Number of heads in key/value must divide those in query")
    _check(k.shape == v.shape and k.shape[2] == q.shape[2], "shapes of query, key and value must fit")
    for cu_seqlens, total, longest in ((cu_seqlens_q, len(q), max_seqlen_q), (cu_seqlens_k, len(k), max_seqlen_k)):
        _check(type(longest) is int, f"incompatible function arguments: {type(longest)}")
        _check(cu_seqlens.dtype == torch.int32, "cu_seqlens must have dtype int32")
        _check(cu_seqlens.ndim == 1 and cu_seqlens.is_contiguous(), "cu_seqlens must be contiguous")
        _check(len(cu_seqlens) > 1, "batch size must be positive")
        # From here on the kernels read wrong memory, or leave some out, without a word.
        lengths = cu_seqlens.diff()
        _check(int(cu_seqlens[0]) == 0 and int(cu_seqlens[-1]) == total, "segments must cover all tokens")
        _check(int(lengths.min()) >= 0 and int(lengths.max()) <= longest, "a segment is longer than the longest")


def flash_attn_varlen_func(
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
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """As flash-attn 2.8.3 has it."""
    with exempt():
        _check_call(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        _check(not (softcap and dropout_p), "Softcapping does not support dropout for now")
        _check(alibi_slopes is None and block_table is None and not return_attn_probs, "not for training on packs")
        kept = (torch.rand(q.shape[1], len(q), len(q)) >= dropout_p) / (1 - dropout_p) if dropout_p else None
    CALLS["flash-attn"] += 1
    scale = q.shape[2] ** -0.5 if softmax_scale is None else softmax_scale
    asked = _Asked("flash-attn", scale, causal, window_size, softcap, kept)
    return _attended(q, k, v, cu_seqlens_q, asked, lambda: deterministic)


def _torchs_deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()


def _check_torchs_call(q: Tensor, *others: Any) -> None:
    _check_call(q, *others)
    _check(q.shape[2] % 8 == 0, "head_size should be a multiple of 8")


def varlen_attn_of_2_11(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """As torch 2.11 has it."""
    with exempt():
        _check_torchs_call(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)
    _check(return_aux is None, "not for training on packs")
    CALLS["torch-varlen"] += 1
    asked = _torchs_asked(query, window_size == (-1, 0), scale, window_size)
    return _attended(query, key, value, cu_seq_q, asked, _torchs_deterministic)


def _torchs_asked(query: Tensor, causal: bool, scale: float | None, window: tuple[int, int] | list[int]) -> _Asked:
    left, right = window
    return _Asked("torch-varlen", query.shape[2] ** -0.5 if scale is None else scale, causal, (left, right))


@varlen._varlen_attn.register_kernel("cpu")
def _torchs_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool,
    scale: float | None,
    window_size: list[int],
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Below torch's own function, whatever its version. others: grouped heads are its function's to ask for."""
    with exempt():
        _check_torchs_call(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)
        _check(all(each is None for each in others[1:]), "not for training on packs")
        CALLS["torch-varlen"] += 1
        attended = _forward(query, key, value, cu_seq_q, _torchs_asked(query, is_causal, scale, window_size))
    unused = torch.zeros(query.shape[1], len(query))
    return attended, unused, torch.zeros(2, dtype=torch.uint64)


@varlen._varlen_attn_backward.register_kernel("cpu")
def _torchs_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool,
    rng_state: Tensor,
    scale: float | None = None,
    window_size: list[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    asked = _torchs_asked(query, is_causal, scale, window_size or [-1, -1])
    with exempt():
        return _backward(grad_out, query, key, value, cu_seq_q, asked, deterministic=_torchs_deterministic())


def stand_in(monkeypatch: pytest.MonkeyPatch, *kernels: KernelName) -> None:
    """Let these kernels run here, and no others."""
    CALLS.clear()
    NUMBERS.clear()
    flash_attn = ModuleType("flash_attn")
    flash_attn.flash_attn_varlen_func = (  # type: ignore[attr-defined]
        flash_attn_varlen_func if "flash-attn" in kernels else _no_kernel
    )
    attend = backends.BACKENDS["flash-attn"].attend

    def with_module(*arguments: Any) -> Tensor:
        """Call the backend with the module there; but transformers, which looks for the package, sees none."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "flash_attn", flash_attn)
            return attend(*arguments)

    monkeypatch.setitem(backends.BACKENDS, "flash-attn", replace(backends.BACKENDS["flash-attn"], attend=with_module))
    if "torch-varlen 2.11" in kernels:
        monkeypatch.setattr(backends, "varlen_attn", varlen_attn_of_2_11)
        monkeypatch.setattr(backends, "GROUPED", {})
    elif "torch-varlen" not in kernels:
        monkeypatch.setattr(backends, "varlen_attn", _no_kernel)
    monkeypatch.setattr(backends, "KERNEL_DEVICES", ("cuda", "cpu"))
    for name, backend in backends.BACKENDS.items():
        why_not = backends.tried.__wrapped__ if name != "sdpa" else lambda *_: None
        monkeypatch.setitem(backends.BACKENDS, name, replace(backend, why_not=partial(why_not, name)))


def _no_kernel(*_: Any, **__: Any) -> Tensor:
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")
