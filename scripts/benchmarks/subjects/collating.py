"""Collating packs, beside what it cannot be faster than: numpy widening the same int32 columns to int64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from benchmarks.inputs import CAPACITY
from benchmarks.measuring import Case, case, in_turn, of_call
from benchmarks.parts import Part, Setting, folder_in
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


def widening(setting: Setting, rounds: int) -> dict[str, Case]:
    """64 packs of 4,096 tokens in a batch, however they come."""
    packs = 64
    with folder_in(setting.tmpfs) as folder:
        datasets.disable_progress_bars()
        datasets.Dataset(table(packs, CAPACITY)).save_to_disk(str(folder / "packs"))
        shards = datasets.load_from_disk(str(folder / "packs"))
        as_numpy, as_arrow = shards.with_format("numpy"), shards.with_format("arrow")
        rows = [as_numpy[number] for number in range(packs)]
        whole = as_arrow[:]
        order = np.random.default_rng(0).permutation(packs).tolist()
        flat = [np.concatenate([row[name] for row in rows]) for name in WIDENED]
        plain, more = PackedCollator(), PackedCollator(sample_mean=True, seq_idx=True, pad_to=packs * CAPACITY + 8)
        calls: dict[str, Callable[[], object]] = {
            "widening by numpy": lambda: [column.astype(np.int64) for column in flat],
            "numpy rows": lambda: plain(rows),
            "one table": lambda: plain(whole),
            "numpy rows, all options": lambda: more(rows),
            "reading too, numpy": lambda: plain([as_numpy[number] for number in order]),
            "reading too, arrow": lambda: plain(as_arrow[order]),
        }
        for call in calls.values():
            call()
        costs = in_turn({name: partial(of_call, call) for name, call in calls.items()}, rounds)
    return {f"{packs} packs of {CAPACITY:,} tokens": case(costs, packs=packs, capacity=CAPACITY)}


PARTS = (Part(name="widening", measure=widening, rounds=200, minutes=0.2),)
