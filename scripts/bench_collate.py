"""Collating packs, beside what it cannot be faster than: numpy widening the same int32 columns to int64."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import datasets
import numpy as np
import pyarrow as pa
from bench_common import keep, spread

from training import PackedCollator

WIDENED = ("input_ids", "labels", "position_ids")


def table(num_packs: int, capacity: int) -> pa.Table:
    """Full packs of segments of 144 tokens on average."""
    draws = np.random.default_rng(0)
    columns: dict[str, list[Any]] = {name: [] for name in (*WIDENED, "boundaries", "target_counts")}
    for _ in range(num_packs):
        cuts = np.sort(draws.choice(np.arange(1, capacity), capacity // 144, replace=False))
        boundaries = np.concatenate([[0], cuts, [capacity]]).astype(np.int32)
        ids = draws.integers(0, 50_000, capacity).astype(np.int32)
        columns["input_ids"].append(ids)
        columns["labels"].append(ids)
        columns["position_ids"].append(np.arange(capacity) - np.repeat(boundaries[:-1], np.diff(boundaries)))
        columns["boundaries"].append(boundaries)
        columns["target_counts"].append(np.diff(boundaries) - 1)
    return pa.table({name: pa.array(values, pa.list_(pa.int32())) for name, values in columns.items()})


def seconds(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@click.command()
@click.option("--packs", default=64, show_default=True)
@click.option("--capacity", default=4096, show_default=True)
@click.option("--rounds", default=200, show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path))
def main(packs: int, capacity: int, rounds: int, path: Path | None) -> None:
    """Measure; ways take turns."""
    with tempfile.TemporaryDirectory() as folder:
        datasets.Dataset(table(packs, capacity)).save_to_disk(folder)
        shards = datasets.load_from_disk(folder)
        datasets.disable_progress_bars()
        as_numpy, as_arrow = shards.with_format("numpy"), shards.with_format("arrow")
        rows = [as_numpy[number] for number in range(packs)]
        whole = as_arrow[:]
        order = np.random.default_rng(0).permutation(packs).tolist()
        flat = [np.concatenate([row[name] for row in rows]) for name in WIDENED]
        plain, more = PackedCollator(), PackedCollator(sample_mean=True, seq_idx=True, pad_to=packs * capacity + 8)
        ways: dict[str, Callable[[], object]] = {
            "widening": lambda: [column.astype(np.int64) for column in flat],
            "numpy rows": lambda: plain(rows),
            "one table": lambda: plain(whole),
            "numpy rows, all options": lambda: more(rows),
            "reading too, numpy": lambda: plain([as_numpy[number] for number in order]),
            "reading too, arrow": lambda: plain(as_arrow[order]),
        }
        for way in ways.values():
            way()
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                taken[name].append(seconds(way))
    ratios = {
        name: spread([one / other for one, other in zip(values, taken["widening"], strict=True)])
        for name, values in taken.items()
    }
    figures = {"packs": packs, "capacity": capacity, "times_widening": ratios, "cores": len(os.sched_getaffinity(0))}
    keep(figures | {"widening_seconds": spread(taken["widening"])}, path)


if __name__ == "__main__":
    main()
