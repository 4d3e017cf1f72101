"""What packing is worth: every layout of the same samples, held against what is claimed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpu.made import CAPACITY, DATA, MEASURED, TINY, llama, packed, write_shards
from gpu.report import Report
from training.command.tables import bench_table
from training.measuring.bench import bench
from training.measuring.lanes import Measurement
from training.measuring.versions import machine
from training.options import DENSE, FLATTENING, FLATTENING_TOLD, PACKED, PADDED
from training.shards import open_shards

MOST_OF_STEP = 0.02
"""Part of a step that reading and collating its packs may take."""


@dataclass(frozen=True)
class Bars:
    """What packs have to reach on one kind of data."""

    speed: dict[str, float]
    """Times the real tokens a second of another layout."""

    memory: float
    """Part of the padded layout's peak memory."""


BARS = {
    "superni-like": Bars({PADDED: 2.5, FLATTENING: 1.07, FLATTENING_TOLD: 1.07, DENSE: 0.97}, 0.80),
    "gsm8k-like": Bars({PADDED: 1.5, FLATTENING: 1.02, FLATTENING_TOLD: 1.02, DENSE: 0.97}, 0.94),
}


def check_bench(
    report: Report,
    backends: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    folder: Path,
    *,
    layouts: Sequence[str],
    rounds: int,
    small: bool,
) -> None:
    """Train every layout of the same samples, by each backend."""
    model = llama(TINY if small else MEASURED, device).train()
    for kind in DATA:
        for name in backends:
            report.plan(_names(kind, name, layouts, device))
    measured: dict[str, Any] = {}
    for kind in DATA:
        capacity = 256 if small else CAPACITY
        rows = packed(kind, 4 if small else 16, model.config.vocab_size, capacity)
        packs = open_shards(str(write_shards(rows, folder / kind))).packs
        for name in backends:
            measurement = Measurement(
                packs_per_forward=1 if small else 2,
                rounds=rounds,
                layouts=tuple(layouts),
                backend=name,
                autocast=dtype,
                capacity=capacity,
            )
            figures = bench(model, packs, measurement)
            measured[f"{kind}, {name}"] = figures
            _judge(report, kind, name, figures, device)
            report.keep("bench", measured)
            print(bench_table(machine(device) | figures), flush=True)


def _of(kind: str, backend: str, what: str) -> str:
    return f"{kind} by {backend}: {what}"


def _names(kind: str, backend: str, layouts: Sequence[str], device: torch.device) -> list[str]:
    """Checks that are planned of these layouts."""
    whats = list(layouts)
    if PACKED in layouts:
        whats += [f"packed / {other}" for other in BARS[kind].speed if _is_planned(other, backend, layouts)]
        whats += ["loader"]
        if device.type == "cuda":
            whats += ["MFU"] + (["memory of padded"] if PADDED in layouts else [])
    return [_of(kind, backend, what) for what in whats]


def _is_planned(other: str, backend: str, layouts: Sequence[str]) -> bool:
    """The reference has no peer in transformers: that is said, and no failure."""
    return other in layouts and not (backend == "sdpa" and other in (FLATTENING, FLATTENING_TOLD))


def _judge(report: Report, kind: str, backend: str, figures: dict[str, Any], device: torch.device) -> None:
    layouts = figures["layouts"]
    for layout, found in layouts.items():
        divided = f", in {found['micro_batches']} micro-batches a step" if found["micro_batches"] > 1 else ""
        value = None if "failed" in found else f"{found['tokens_per_second']:,.0f} tokens/s{divided}"
        report.check(_of(kind, backend, layout), "failed" not in found, value, reason=found.get("failed", ""))
    if PACKED not in layouts:
        return
    ratios = figures["ratios"][PACKED]
    for other, bar in BARS[kind].speed.items():
        if not _is_planned(other, backend, list(layouts)):
            continue
        name = _of(kind, backend, f"packed / {other}")
        if "not_given" in ratios[other]:
            report.absent(name, ratios[other]["not_given"])
        else:
            report.hold(name, ratios[other]["tokens_per_second"]["median"], at_least=bar)
    part = figures["collating"].get("part_of_step")
    failed = layouts[PACKED].get("failed")
    if part is None:
        report.absent(_of(kind, backend, "loader"), f"packed failed: {failed}")
    else:
        report.hold(_of(kind, backend, "loader"), part, below=MOST_OF_STEP)
    if device.type != "cuda":
        return
    mfu = layouts[PACKED].get("mfu")
    if mfu is None:
        report.absent(_of(kind, backend, "MFU"), failed or figures["no_mfu"])
    else:
        report.check(_of(kind, backend, "MFU"), True, mfu)
    if PADDED in layouts:
        memory = ratios[PADDED].get("peak_memory")
        name = _of(kind, backend, "memory of padded")
        if memory is None:
            report.absent(name, ratios[PADDED].get("not_given", "it was not measured"))
        else:
            report.hold(name, memory, below=BARS[kind].memory + 1e-9)
