"""Planning against sorting: each strategy's time as a ratio to a stable argsort of the same lengths.

The rounds alternate, so that a machine that slows down slows both sides. Cold start is a process of its
own with an empty cache of compiled code.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from bench_common import CAPACITY, keep, reference_lengths, spread

from strategies import Draws, Request, find
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


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path))
def main(rounds: int, path: Path | None) -> None:
    """Measure best-fit-decreasing at 10 M lengths and every order-dependent strategy at 1 M."""
    cases = [("best-fit-decreasing", 10_000_000), ("best-fit-decreasing", 1_000_000)]
    cases += [(name, 1_000_000) for name in ("first-fit", "first-fit-decreasing", "next-fit")]
    figures: dict[str, Any] = {f"{name} {count:,}": measure(name, count, rounds) for name, count in cases}
    figures["cold_start_seconds"] = {name: cold_start(name) for name in ("best-fit-decreasing", "first-fit")}
    keep(figures, path)


if __name__ == "__main__":
    main()
