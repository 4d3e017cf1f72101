"""Under stand-ins for the GPU's kernels: they are called as they want to be, and by what they can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from tests.training.kernels import CALLS, KERNELS, KernelName, flash_attn_varlen_func, stand_in, varlen_attn_of_2_11
from tests.training.samples import tiny
from training.attention.backends import BACKENDS
from training.attention.interface import resolve_backend, use_backend
from training.attention.settings import AttentionSettings, UnsupportedAttentionError

LENGTHS = [5, 1, 9, 0, 17]


def attention(backend: str, asked: AttentionSettings, heads: tuple[int, int], widths: tuple[int, int]) -> list[Tensor]:
    """Output and gradients, of the same draws every time."""
    torch.manual_seed(0)
    dtype = torch.float32 if backend == "sdpa" else torch.bfloat16
    shapes = [(heads[0], widths[0]), (heads[1], widths[0]), (heads[1], widths[1])]
    given = [torch.randn(sum(LENGTHS), *shape).bfloat16().to(dtype).requires_grad_() for shape in shapes]
    cu_seqlens = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32)
    out = BACKENDS[backend].attend(given[0], given[1], given[2], cu_seqlens, max(LENGTHS), asked)
    weights = torch.randn(out.shape).bfloat16().to(dtype)
    return [each.float() for each in (out.detach(), *torch.autograd.grad(out, given, weights))]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("asked", "heads", "widths"),
    [
        ({}, (4, 4), (8, 8)),
        ({"window_size": (3, 0)}, (4, 2), (16, 16)),
        ({"scale": 0.5}, (6, 2), (12, 12)),  # no multiple of 8
        ({}, (4, 2), (12, 7)),
        ({"causal": False, "window_size": (2, 1)}, (2, 1), (8, 20)),  # values wider than queries
        ({"causal": False}, (2, 2), (256, 256)),
        ({"softcap": 2.0}, (4, 2), (8, 8)),
    ],
)
def test_kernels_compute_what_the_reference_does(
    kernel: KernelName,
    asked: dict[str, Any],
    heads: tuple[int, int],
    widths: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch, kernel)
    backend, settings = kernel.partition(" ")[0], AttentionSettings(**asked)
    if "softcap" in asked and backend == "torch-varlen":
        with pytest.raises(UnsupportedAttentionError, match="no softcap: choose flash-attn or sdpa"):
            attention(backend, settings, heads, widths)
        return
    found, exact = attention(backend, settings, heads, widths), attention("sdpa", settings, heads, widths)
    assert (CALLS[backend], CALLS[f"{backend} backward"]) == (1, 1)
    for one, other in zip(found, exact, strict=True):
        assert one.shape == other.shape
        assert float((one - other).norm() / other.norm()) < 0.01


WRONG: dict[str, dict[str, Any]] = {
    "fp16 and bf16": {"dtype": torch.float32},
    "same dtype": {"k": torch.zeros(9, 2, 8, dtype=torch.float16)},
    "contiguous last dimension": {"v": torch.zeros(9, 8, 2, dtype=torch.bfloat16).transpose(1, 2)},
    "at most 256": {"width": 264},
    "must divide": {"k": torch.zeros(9, 3, 8, dtype=torch.bfloat16), "v": torch.zeros(9, 3, 8, dtype=torch.bfloat16)},
    "incompatible function arguments": {"longest": torch.tensor(6)},
    "dtype int32": {"cu_seqlens": torch.tensor([0, 3, 9])},
    "must be contiguous": {"cu_seqlens": torch.tensor([[0, 0], [3, 0], [9, 0]], dtype=torch.int32)[:, 0]},
    "batch size": {"cu_seqlens": torch.tensor([9], dtype=torch.int32)},
    "cover all tokens": {"cu_seqlens": torch.tensor([0, 3, 8], dtype=torch.int32)},
    "longer than the longest": {"longest": 5},
}


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (function, said)
        for function in (flash_attn_varlen_func, varlen_attn, varlen_attn_of_2_11)
        for said in WRONG
        # torch's dispatcher makes a number of a tensor, and waits for the device.
        if (function, said) != (varlen_attn, "incompatible function arguments")
    ],
)
def test_stand_ins_refuse_what_kernels_refuse(function: Callable[..., Any], said: str) -> None:
    wrong = {**WRONG[said]}
    dtype, width = wrong.pop("dtype", torch.bfloat16), wrong.pop("width", 8)
    good = {
        **{name: torch.zeros(9, 2, width, dtype=dtype) for name in ("q", "k", "v")},
        "cu_seqlens": torch.tensor([0, 3, 9], dtype=torch.int32),
        "longest": 6,
    }

    def call(given: dict[str, Any]) -> None:
        q, k, v, cu_seqlens, longest = (given[name] for name in ("q", "k", "v", "cu_seqlens", "longest"))
        function(q, k, v, cu_seqlens, cu_seqlens, longest, longest)

    if said not in ("fp16 and bf16", "at most 256"):
        call(good)
    # torch's own function looks at heads, and its dispatcher at types, before the kernel does.
    with pytest.raises((RuntimeError, ValueError, TypeError), match=f"{said}|same number of heads|Tensor"):
        call(good | wrong)
    if function is not flash_attn_varlen_func:
        with pytest.raises(RuntimeError, match="multiple of 8"):
            call(good | {name: torch.zeros(9, 2, 12, dtype=torch.bfloat16) for name in ("q", "k", "v")})


@pytest.mark.parametrize("backend", ["flash-attn", "torch-varlen"])
def test_a_head_that_is_too_wide_and_float32_are_refused_plainly(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "flash-attn", "torch-varlen")
    with pytest.raises(UnsupportedAttentionError, match="up to 256, and the model has 264: choose the backend sdpa"):
        attention(backend, AttentionSettings(), (2, 2), (264, 8))
    tokens, cu_seqlens = torch.zeros(4, 2, 8), torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(UnsupportedAttentionError, match=r"autocast=torch\.bfloat16"):
        BACKENDS[backend].attend(tokens, tokens, tokens, cu_seqlens, 4, AttentionSettings())
    assert not CALLS


@pytest.mark.parametrize(
    ("family", "kernels", "chosen", "why"),
    [
        ("llama", KERNELS[:2], "flash-attn", "the fastest"),
        ("llama", KERNELS[1:2], "torch-varlen", "flash-attn: "),
        ("llama", (), "sdpa", "torch-varlen: FlashAttention only supports Ampere GPUs or newer"),
        ("gemma2", KERNELS[:2], "flash-attn", "the fastest"),
        ("gemma2", KERNELS[1:2], "sdpa", "torch-varlen: torch-varlen has no softcap"),
        ("gpt_oss", KERNELS[:2], "sdpa", "flash-attn: flash-attn has no attention sinks"),
    ],
)
def test_auto_takes_what_the_models_layers_can_use(
    family: str,
    kernels: tuple[KernelName, ...],
    chosen: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stand_in(monkeypatch, *kernels)
    model, state = tiny(family), torch.random.get_rng_state()
    own = model.config._attn_implementation
    with caplog.at_level("INFO"):
        assert resolve_backend(model, "auto", torch.bfloat16) == chosen
    assert f"attention by {chosen} on cpu (" in caplog.text
    assert why in caplog.text
    assert (model.config._attn_implementation, model.training) == (own, False)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(each.grad is None for each in model.parameters())
    use_backend(model, "auto")  # in a loop of one's own
    named = model.config._attn_implementation
    use_backend(model, chosen)
    assert model.config._attn_implementation == named != own


def test_auto_knows_dropout_and_precision(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A model in eval mode has no dropout, and is trained with it."""
    stand_in(monkeypatch, "torch-varlen")
    model = tiny()
    assert resolve_backend(model, "auto", torch.bfloat16) == "torch-varlen"
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with caplog.at_level("INFO"):
        assert resolve_backend(model, "auto", torch.bfloat16) == "sdpa"
        assert resolve_backend(tiny(), "auto", None) == "sdpa"
    assert "torch-varlen has no dropout" in caplog.text
    assert "the model gives it torch.float32: compute the forward pass in bfloat16" in caplog.text
