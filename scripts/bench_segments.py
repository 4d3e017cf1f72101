"""A cap on the segments of a pack: packs over the lower bound, and plan time as a ratio to that without a cap.

The rounds alternate, so that a machine that slows down slows both sides. First-fit-decreasing stands beside it: it
closes a pack at the cap and does nothing else about it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from bench_common import CAPACITY, keep, reference_lengths, spread

from strategies import Draws, Request, find
from strategies.arrays import Int32Array
from strategies.contract import check


def cases() -> list[tuple[str, Int32Array, int, tuple[int, ...]]]:
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


def measure(lengths: Int32Array, capacity: int, cap: int, rounds: int) -> dict[str, Any]:
    """Plan with and without a cap, in turn."""
    free = Request(lengths=lengths, capacity=capacity, draws=Draws("bench"))
    capped = replace(free, max_segments=cap)
    ours, greedy = find("best-fit-decreasing"), find("first-fit-decreasing")
    plan = check(ours.place(capped), capped, ours.name)  # compiles
    without, packs_of_greedy = ours.place(free), check(greedy.place(capped), capped, greedy.name).num_packs
    walls, cpus, ratios, cpu_ratios = [], [], [], []
    for _ in range(rounds):
        wall, cpu = seconds(lambda: ours.place(free))
        wall_capped, cpu_capped = seconds(lambda: ours.place(capped))
        walls.append(wall_capped)
        cpus.append(cpu_capped)
        ratios.append(wall_capped / wall)
        cpu_ratios.append(cpu_capped / cpu)
    bound = max(-(-int(lengths.sum()) // capacity), -(-len(lengths) // cap))
    return {
        "packs": plan.num_packs,
        "lower_bound": bound,
        "over": plan.num_packs / bound - 1,
        "over_by_first_fit_decreasing": packs_of_greedy / bound - 1,
        "packs_without_a_cap": without.num_packs,
        "most_segments_without_a_cap": int(np.diff(without.pack_offsets).max()),
        "seconds": spread(walls),
        "cpu_seconds": spread(cpus),
        "ratio": spread(ratios),
        "cpu_ratio": spread(cpu_ratios),
    }


def seconds(function: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU time of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


@click.command()
@click.option("--rounds", default=15, show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path))
def main(rounds: int, path: Path | None) -> None:
    """Measure best-fit-decreasing under caps that bind by tokens, by segments, and by both."""
    figures = {
        f"{name}, capacity {capacity}, cap {cap}": measure(lengths, capacity, cap, rounds)
        for name, lengths, capacity, caps in cases()
        for cap in caps
    }
    keep(figures, path)


if __name__ == "__main__":
    main()
