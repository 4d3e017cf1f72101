"""Inputs that are larger than memory: from parquet to packs under a cap on what a process may have of its own.

The cap is RLIMIT_DATA, on private writable memory of each process; the peak beside it is what was really touched, of
all processes together. Pages of files that are mapped are not in either: the kernel takes them back as it likes.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

from benchmarks.inputs import short_lengths, write_parquet
from benchmarks.measuring import Case, Cost, case, in_turn, of_process
from benchmarks.parts import Part, Setting, folder_in, pack_command, removed

CAP = 2 * 10**9
COUNTS = (1_000_000, 4_000_000, 10_000_000, 20_000_000)


def _pack(source: str, out: Path) -> Cost:
    removed(out, out.parent / "cache")
    os.sync()
    return of_process(pack_command(source, out, "--json"), most_bytes=CAP)


def capped(setting: Setting, rounds: int) -> dict[str, Case]:
    """One file of parquet with 100 tokens a sample, on disk."""
    cases = {}
    with folder_in(setting.disk) as folder:  # compiles
        _pack(f"{write_parquet(folder / 'in', short_lengths(1000))}/*.parquet", folder / "out")
    for count in map(setting.samples, COUNTS):
        with folder_in(setting.disk) as folder:
            lengths = short_lengths(count)
            source = write_parquet(folder / "in", lengths)
            out = folder / "out"
            costs = in_turn({"tightpack": partial(_pack, f"{source}/*.parquet", out)}, rounds)
            told = json.loads(costs["tightpack"][-1].told)
            cases[f"{count:,} samples from parquet"] = case(
                costs,
                samples=count,
                tokens=int(lengths.sum()),
                packs=told["packs"],
                fill=told["fill"],
                input_gb=sum(file.stat().st_size for file in source.iterdir()) / 1e9,
                output_gb=sum(file.stat().st_size for file in out.iterdir()) / 1e9,
                cap_gb=CAP / 1e9,
            )
    return cases


PARTS = (Part(name="capped", measure=capped, rounds=1, minutes=10),)
