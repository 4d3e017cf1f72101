"""Planning against sorting: each strategy's time as a ratio to a stable argsort of the same lengths.

The rounds alternate, so that a machine that slows down slows both sides. Cold start is a process of its own with an
empty cache of compiled code. `capped` measures planning under a cap on the segments of a pack, as a ratio to planning
without one; first-fit-decreasing, beside it, closes a pack at the cap and does nothing else about it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from bench_common import CAPACITY, keep, reference_lengths, spread

from strategies import Draws, Request, find
from strategies.arrays import Int32Array
from strategies.contract import check


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measure(name: str, count: int, rounds: int) -> dict[str, Any]:
    """Time a strategy and the sort in turn. The plan's check is timed apart, as part of neither."""
    lengths = reference_lengths(count)
    strategy = find(name)
    options = strategy.options()
    request = Request(
        lengths=lengths.astype(np.int32),
        capacity=strategy.capacity(CAPACITY, options),
        draws=Draws("bench"),
        options=options,
    )
    plan = check(strategy.place(request), request, name)  # compiles
    ours, sorts, checks = [], [], []
    for _ in range(rounds):
        sorts.append(seconds(lambda: np.argsort(lengths, kind="stable")))
        ours.append(seconds(lambda: strategy.place(request)))
        checks.append(seconds(lambda: check(plan, request, name)))
    tokens = int(lengths.sum())
    return {
        "lengths": count,
        "seconds": spread(ours),
        "argsort_seconds": spread(sorts),
        "check_seconds": spread(checks),
        "ratio": spread([a / b for a, b in zip(ours, sorts, strict=True)]),
        "ratio_with_check": spread([(a + c) / b for a, b, c in zip(ours, sorts, checks, strict=True)]),
        "packs": plan.num_packs,
        "lower_bound": -(-tokens // request.capacity),
        "fill": tokens / (plan.num_packs * request.capacity),
    }


def cold_start(name: str) -> float:
    """Seconds of a first plan in a new process without compiled code, imports included."""
    code = f"from strategies import pack; pack([1, 2, 3], 4, {name!r})"
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-c", code]
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
        return seconds(lambda: subprocess.run(command, check=True, env=environment))


def capped_cases() -> list[tuple[str, Int32Array, int, tuple[int, ...]]]:
    """Name, lengths, capacity and caps."""
    draws = np.random.default_rng(0)
    tiny = draws.integers(1, 9, 200_000).astype(np.int32)
    even = np.clip(np.exp(draws.normal(4.9, 0.45, 200_000)), 20, 600).astype(np.int32)
    heavy = np.clip(np.exp(draws.normal(4.5, 1.6, 300_000)), 1, CAPACITY).astype(np.int32)
    return [
        ("200,000 of 1 to 8 tokens", tiny, 131_072, (64, 1024, 3072)),
        ("1,000,000 of the reference", reference_lengths(1_000_000).astype(np.int32), CAPACITY, (16, 32, 64)),
        ("200,000 of even lengths", even, 2048, (8, 14, 16)),
        ("300,000 with a heavy tail", heavy, CAPACITY, (16, 24, 32)),
    ]


def measure_capped(lengths: Int32Array, capacity: int, cap: int, rounds: int) -> dict[str, Any]:
    """Plan with and without a cap, in turn."""
    free = Request(lengths=lengths, capacity=capacity, draws=Draws("bench"))
    capped = replace(free, max_segments=cap)
    ours, greedy = find("best-fit-decreasing"), find("first-fit-decreasing")
    plan = check(ours.place(capped), capped, ours.name)  # compiles
    without, packs_of_greedy = ours.place(free), check(greedy.place(capped), capped, greedy.name).num_packs
    walls, ratios, cpu_ratios = [], [], []
    for _ in range(rounds):
        times = []
        for request in (free, capped):
            cpu = time.process_time()
            times.append((seconds(partial(ours.place, request)), time.process_time() - cpu))
        walls.append(times[1][0])
        ratios.append(times[1][0] / times[0][0])
        cpu_ratios.append(times[1][1] / times[0][1])
    bound = max(-(-int(lengths.sum()) // capacity), -(-len(lengths) // cap))
    return {
        "packs": plan.num_packs,
        "lower_bound": bound,
        "over": plan.num_packs / bound - 1,
        "over_by_first_fit_decreasing": packs_of_greedy / bound - 1,
        "packs_without_a_cap": without.num_packs,
        "most_segments_without_a_cap": int(np.diff(without.pack_offsets).max()),
        "seconds": spread(walls),
        "ratio": spread(ratios),
        "cpu_ratio": spread(cpu_ratios),
    }


@click.command()
@click.argument("what", type=click.Choice(["strategies", "capped"]), default="strategies")
@click.option("--rounds", default=7, show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path))
def main(what: str, rounds: int, path: Path | None) -> None:
    """Measure best-fit-decreasing at 10 M lengths and every order-dependent strategy at 1 M, or it under caps."""
    if what == "capped":
        measured = {
            f"{name}, capacity {capacity}, cap {cap}": measure_capped(lengths, capacity, cap, rounds)
            for name, lengths, capacity, caps in capped_cases()
            for cap in caps
        }
        keep(measured, path)
        return
    cases = [("best-fit-decreasing", 10_000_000), ("best-fit-decreasing", 1_000_000)]
    cases += [(name, 1_000_000) for name in ("first-fit", "first-fit-decreasing", "next-fit")]
    figures: dict[str, Any] = {f"{name} {count:,}": measure(name, count, rounds) for name, count in cases}
    figures["cold_start_seconds"] = {name: cold_start(name) for name in ("best-fit-decreasing", "first-fit")}
    keep(figures, path)


if __name__ == "__main__":
    main()
