"""Layouts are measured apart from each other, and what is said of them is what happened."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.training.kernels import CALLS, stand_in
from tests.training.samples import pack_of, tiny
from training.measuring import lanes
from training.measuring.bench import bench
from training.measuring.flattening import attend_as_transformers
from training.measuring.lanes import Measurement
from training.measuring.layouts import layout_steps
from training.measuring.metrics import peak_flops, peak_of, why_no_mfu
from training.options import DENSE, FLATTENED, FLATTENING, FLATTENING_TOLD, MINIBATCH, PACKED, PADDED

PACKS = [pack_of([5, 9, 1], 0), pack_of([14], 1), pack_of([3, 3, 3, 3], 2), pack_of([7, 8], 3)]


def measured(*layouts: str, model: Any = None, rounds: int = 2, **more: Any) -> dict[str, Any]:
    options = Measurement(rounds=rounds, layouts=layouts, packs_per_forward=2, capacity=20, **more)
    return bench(tiny().train() if model is None else model, PACKS, options)


def test_a_layout_that_memory_does_not_suffice_for_is_divided_and_says_so() -> None:
    model = tiny().train()
    seen: list[int] = []

    def refuse(_: Any, __: Any, given: dict[str, Any]) -> None:
        seen.append(given["input_ids"].numel())
        if seen[-1] > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    found = measured(PADDED, MINIBATCH, PACKED, model=model)
    whole = measured(PADDED, MINIBATCH, PACKED)
    layouts = found["layouts"]
    assert layouts[PADDED]["micro_batches"] >= layouts[PACKED]["micro_batches"] == 2
    assert layouts[PADDED]["steps"] == layouts[PACKED]["steps"] == 2
    assert layouts[PADDED]["real_tokens"] > whole["layouts"][PADDED]["real_tokens"]  # each piece is padded by itself
    assert found["ratios"][PACKED][PADDED]["tokens_per_second"]["median"] > 0
    assert all(each["micro_batches"] == 1 for each in whole["layouts"].values())

    def always(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with model.register_forward_pre_hook(always):
        told = measured(PACKED, model=model)["layouts"][PACKED]
    assert told["failed"] == "OutOfMemoryError, with one row at a time: CUDA out of memory"


@pytest.mark.parametrize("layout", [PADDED, FLATTENING, FLATTENING_TOLD, MINIBATCH, PACKED])
def test_pieces_of_a_step_train_what_it_trains(layout: str) -> None:
    """The gradient of a step is that of its micro-batches, for our step and for that of transformers."""
    gradients = []
    for parts in (1, 2):
        lane = lanes.Lane(layout, PACKS, model := tiny().train(), Measurement(packs_per_forward=2, capacity=20))
        lane.micro_batches = parts
        kept: list[torch.Tensor] = []
        lane._optimizer.register_step_pre_hook(
            lambda *_, model=model, kept=kept: kept.extend(each.grad.clone() for each in model.parameters())
        )
        lane.run(1)
        assert lane.failed is None
        gradients.append(kept)
    assert len(gradients[0]) == len(gradients[1]) > 0
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_layout_that_fails_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers has no flash-attn here, which it says when the attention is set."""
    stand_in(monkeypatch, "flash-attn")
    monkeypatch.setattr("training.measuring.flattening.is_flash_attn_2_available", lambda: True)
    found = measured(PADDED, FLATTENING, PACKED, backend="flash-attn", autocast=torch.bfloat16)
    for name in (PADDED, FLATTENING):
        assert "ImportError" in found["layouts"][name]["failed"]
        assert found["ratios"][PACKED][name]["not_given"].startswith(f"{name} failed: ImportError")
    assert found["layouts"][PACKED]["tokens_per_second"] > 0


def test_what_fails_when_a_layout_is_left_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an illegal access whatever is asked of a GPU raises, giving memory back, too."""

    def broken(layer: Any) -> None:
        leave(layer)
        if layer.layout == PADDED:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    leave = lanes.Lane._leave
    monkeypatch.setattr(lanes.Lane, "_leave", broken)
    found = measured(PADDED, PACKED)
    assert found["layouts"][PADDED]["failed"].startswith("RuntimeError: CUDA error")
    assert found["layouts"][PACKED]["tokens_per_second"] > 0


def test_adam_is_warm_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    warm: list[int] = []
    timed = lanes.timed

    def watched(steps: Any, device: torch.device) -> list[float]:
        warm.append(len(running[-1]._optimizer.state))
        return timed(steps, device)

    running: list[lanes.Lane] = []
    one_round = lanes.Lane._round
    monkeypatch.setattr(lanes, "timed", watched)

    def noted(lane: lanes.Lane) -> list[float]:
        running.append(lane)
        return one_round(lane)

    monkeypatch.setattr(lanes.Lane, "_round", noted)
    measured(PADDED, PACKED, rounds=3)
    assert warm == [len(list(tiny().parameters()))] * 6
    assert not any(lane._optimizer.state for lane in running)  # and is no burden to the others


@pytest.mark.parametrize("backend", ["flash-attn", "torch-varlen"])
def test_flattened_batches_are_computed_by_the_same_kernels(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, backend)
    found = measured(*FLATTENED, PACKED, DENSE, backend=backend, autocast=torch.bfloat16)
    assert {each["attention"] for each in found["layouts"].values()} == {backend}
    for name in (*FLATTENED, DENSE):
        ratio = found["ratios"][PACKED][name]["tokens_per_second"]
        assert 0 < ratio["least"] <= ratio["median"] <= ratio["most"]
    model = tiny()
    (step, _), (told, _) = (layout_steps(name, PACKS, 2, 20, 0) for name in FLATTENED)
    (plain,), (with_ends,) = step.micro_batches, told.micro_batches
    given = {name: plain[name] for name in ("input_ids", "position_ids")}
    with torch.no_grad():
        expected = model(**given, use_cache=False).logits
        assert attend_as_transformers(model, FLATTENING, backend) == backend
        CALLS.clear()
        for batch in (given, {name: value for name, value in with_ends.items() if name != "labels"}):
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(**batch, use_cache=False).logits
            assert float((logits - expected).norm() / expected.norm()) < 0.05
    assert CALLS[backend] == 4


def test_other_kernels_are_no_peers() -> None:
    found = measured(FLATTENING, PACKED, rounds=1)
    said = "not the same kernels: packed is computed by sdpa, transformers-flattening by transformers' sdpa"
    assert found["ratios"][PACKED][FLATTENING] == {"not_given": said}


@pytest.mark.parametrize(
    ("name", "half", "single"),
    [
        ("NVIDIA L4", 121, 30.3),
        ("NVIDIA L40", 181, 90.5),
        ("NVIDIA L40S", 362, 91.6),
        ("NVIDIA A10", 125, 31.2),
        ("NVIDIA A10G", 70, 31.5),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA H100 80GB HBM3", 989.4, 66.9),
        ("NVIDIA H100 PCIe", 756, 51.2),
        ("NVIDIA H100 NVL", 835.5, 60),
        ("NVIDIA H200", 989.4, 66.9),
        ("NVIDIA H20", 148, 44),
        ("NVIDIA B200", 2250, 75),
        ("NVIDIA H100 MIG 1g.10gb", None, None),
        ("NVIDIA H2000", None, None),
        ("Tesla V100-SXM2-16GB", None, None),
    ],
)
def test_peaks_are_known_by_the_whole_name(name: str, half: float | None, single: float | None) -> None:
    for dtype, peak in ((torch.bfloat16, half), (torch.float16, half), (torch.float32, single), (None, single)):
        assert peak_of(name, dtype) == (None if peak is None else pytest.approx(peak * 1e12))
    assert peak_of(name, torch.float64) is None


def test_float32_by_tf32_has_its_own_peak() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        assert peak_of("NVIDIA H200", None) == pytest.approx(494.7e12)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert peak_flops(torch.device("cpu"), None) is None
    assert why_no_mfu(torch.device("cpu"), None) == "no peak is known of a cpu"
