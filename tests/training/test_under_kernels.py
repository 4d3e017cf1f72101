"""All that runs on a GPU, run here under stand-ins for its kernels, in bfloat16."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.training.checking.test_probe import ROWS
from tests.training.kernels import CALLS, KernelName, flash_attn_varlen_func, stand_in
from tests.training.samples import pack_of, tiny
from training.checking.parity import parity
from training.checking.probe import probe

CLEAN = [row[0] for row in ROWS if row[1] == "clean"]
OWN_ATTENTION = ("codegen", "gptj", "gpt_neo")
REFUSED = {
    ("gemma2", "torch-varlen"): "has no softcap: choose flash-attn or sdpa",
    ("vaultgemma", "torch-varlen"): "has no softcap: choose flash-attn or sdpa",
    ("gpt_oss", "flash-attn"): "has no attention sinks: choose the backend sdpa",
    ("gpt_oss", "torch-varlen"): "has no attention sinks: choose the backend sdpa",
    ("dbrx", "flash-attn"): "--dtype float32 goes, by the backend sdpa",
    ("dbrx", "torch-varlen"): "--dtype float32 goes, by the backend sdpa",
}
ROUTED = ("mixtral", "qwen3_moe", "jetmoe", "dots1", "exaone_moe", "deepseek_v3")


@pytest.mark.parametrize("family", CLEAN)
@pytest.mark.parametrize("backend", ["flash-attn", "torch-varlen"])
def test_clean_families_are_clean_or_told_what_would_work(
    family: str, backend: KernelName, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, backend)
    found = probe(tiny(family), backend, autocast=torch.bfloat16)
    if (family, backend) in REFUSED:
        assert found.verdict == "refuses"
        assert REFUSED[family, backend] in str(found.message)
        return
    assert found.verdict == "clean"
    assert found.gradient == found.ahead == 0
    if family in OWN_ATTENTION:
        assert found.kernel is None
        assert not CALLS
    else:
        assert 0 < (found.kernel or 0) < 0.02
        assert CALLS[backend]
        assert CALLS[f"{backend} backward"]


@pytest.mark.parametrize("family", ["falcon", "mamba"])
def test_leaks_show_under_kernels(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "flash-attn")
    assert probe(tiny(family), "flash-attn", autocast=torch.bfloat16).verdict == "leaks"
    _, rounded = parity(tiny(family), [pack_of([9, 8, 4])], "flash-attn", dtype=torch.bfloat16)
    assert not rounded.agrees
    assert rounded.loss_difference > 5 * rounded.most_loss


@pytest.mark.parametrize(
    ("wrong", "verdict"),
    [
        ({"window_size": (2, 0)}, "differs"),  # leaves tokens out
        ({"softmax_scale": 0.1}, "differs"),
        ({"causal": False}, "looks ahead"),
        ({}, "leaks"),
    ],
)
def test_a_wrong_kernel_is_found(wrong: dict[str, Any], verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is right, so that only what is asked of the kernel itself shows it."""

    def faulty(*arguments: Any, **named: Any) -> Any:
        return flash_attn_varlen_func(*arguments, **named | wrong)

    def leaking(q: Any, k: Any, v: Any, cu_seqlens: torch.Tensor, *rest: Any, **named: Any) -> Any:
        whole = cu_seqlens[[0, -1]]
        return flash_attn_varlen_func(q, k, v, whole, whole, len(q), len(q), **named)

    monkeypatch.setattr("tests.training.kernels.flash_attn_varlen_func", faulty if wrong else leaking)
    stand_in(monkeypatch, "flash-attn")
    found = probe(tiny(), "flash-attn", autocast=torch.bfloat16)
    assert (found.verdict, found.layer) == (verdict, "LlamaAttention")
    assert found.logits == 0
    (_, rounded) = parity(tiny(), [pack_of([12, 16])], "flash-attn", dtype=torch.bfloat16)
    assert not rounded.agrees


@pytest.mark.parametrize("family", ROUTED)
def test_routers_that_choose_otherwise_are_rounding(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "flash-attn")
    packs = [pack_of([9, 1, 14, 6], 2), pack_of([16, 3], 3)]
    exact, rounded = parity(tiny(family, 2), packs, "flash-attn", dtype=torch.bfloat16)
    assert exact.agrees
    assert rounded.agrees
    assert 0 < (rounded.kernel_difference or 0) < 0.02
