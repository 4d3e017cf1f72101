"""The whole job as a process, against its peers and against what the disk allows.

On tmpfs beside TRL's `pack_dataset(..., "bfd")` followed by `save_to_disk`, over the whole dataset and per 1,000 rows
as its trainer does it; beside `cp` of the output; from parquet beside `pyarrow.parquet.read_table` alone, and the sum
of that and the job from Arrow. On disk, with its fsyncs, beside `cp -r` and `sync`. And a job that comes again.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.inputs import CAPACITY, reference_lengths, write_arrow, write_json_lines, write_parquet
from benchmarks.measuring import Case, Cost, case, in_turn, of_process
from benchmarks.parts import Part, Setting, folder_in, pack_command, removed

MILLION = 1_000_000

TRL = """
import sys, datasets
from trl import pack_dataset
source, output, capacity, rows = sys.argv[1:]
dataset = datasets.load_from_disk(source)
packed = pack_dataset(dataset, int(capacity), "bfd", map_kwargs={"batch_size": int(rows) or len(dataset)})
packed.save_to_disk(output)
"""
READ = "import pyarrow.parquet, sys; pyarrow.parquet.read_table(sys.argv[1])"


class Jobs:
    """What is run in a folder; each run begins without what earlier ones left."""

    def __init__(self, folder: Path, count: int, is_synced: bool = False) -> None:
        self.folder, self.out, self.is_synced = folder, folder / "out", is_synced
        self.lengths = reference_lengths(count)
        self.facts = {"samples": count, "tokens": int(self.lengths.sum())}

    def clean(self, *more: Path) -> None:
        """Remove what a run left, and wait for the disk."""
        removed(self.out, self.folder / "cache", *more)
        for cached in self.folder.glob("*/cache-*.arrow"):
            cached.unlink()
        if self.is_synced:
            os.sync()

    def pack(self, source: Path | str, *flags: object) -> Cost:
        """Pack into a new directory."""
        self.clean()
        return of_process(pack_command(source, self.out, *flags))

    def trl(self, source: Path, rows: int) -> Cost:
        """TRL on batches of so many rows, of all where it is 0."""
        output = self.folder / "trl"
        self.clean(output)
        cost = of_process([sys.executable, "-c", TRL, source, output, CAPACITY, rows], {"HF_HUB_OFFLINE": "1"})
        self.clean(output)
        return cost

    def copy(self, kept: Path) -> Cost:
        """`cp -r` of an output, and `sync` where the job syncs."""
        copied = self.folder / "copy"
        self.clean(copied)
        sync = " && sync" if self.is_synced else ""
        cost = of_process(["sh", "-c", f"cp -r --reflink=never {kept} {copied}{sync}"])
        removed(copied)
        return cost

    def kept(self, source: Path) -> Path:
        """An output that stays; the first run, which compiles as well."""
        self.pack(source)
        return self.out.rename(self.folder / "kept")


def arrow(setting: Setting, rounds: int) -> dict[str, Case]:
    """From Arrow on tmpfs, 1 M, with all peers."""
    with folder_in(setting.tmpfs) as folder:
        jobs = Jobs(folder, setting.samples(MILLION))
        source = write_arrow(folder / "in", jobs.lengths)
        kept = jobs.kept(source)
        costs = in_turn(
            {
                "tightpack": lambda: jobs.pack(source),
                "TRL bfd, all rows": lambda: jobs.trl(source, 0),
                "TRL bfd, per 1,000 rows": lambda: jobs.trl(source, 1000),
                "cp -r of the output": lambda: jobs.copy(kept),
            },
            rounds,
        )
    return {f"{jobs.facts['samples']:,} samples": case(costs, **jobs.facts)}


def larger(setting: Setting, rounds: int) -> dict[str, Case]:
    """From Arrow, 4 M, on disk, beside `cp -r` and `sync`."""
    return _on_disk(setting, 4 * MILLION, rounds)


def disk(setting: Setting, rounds: int) -> dict[str, Case]:
    """From Arrow, 1 M, on disk and fsynced, beside `cp -r` and `sync`."""
    return _on_disk(setting, MILLION, rounds)


def _on_disk(setting: Setting, count: int, rounds: int) -> dict[str, Case]:
    with folder_in(setting.disk) as folder:
        jobs = Jobs(folder, setting.samples(count), is_synced=True)
        source = write_arrow(folder / "in", jobs.lengths)
        kept = jobs.kept(source)
        ways = {"tightpack": lambda: jobs.pack(source), "cp -r of the output, sync": lambda: jobs.copy(kept)}
        return {f"{jobs.facts['samples']:,} samples": case(in_turn(ways, rounds), **jobs.facts)}


def parquet(setting: Setting, rounds: int) -> dict[str, Case]:
    """From parquet in one file and in 16, on tmpfs, 1 M and 4 M."""
    cases = {}
    for count, num_files in ((MILLION, 1), (MILLION, 16), (4 * MILLION, 1)):
        # 4 M do not fit into tmpfs beside their output.
        with folder_in(setting.tmpfs if count == MILLION else setting.disk) as folder:
            jobs = Jobs(folder, setting.samples(count), is_synced=count != MILLION)
            rows, source = (
                write_arrow(folder / "in", jobs.lengths),
                write_parquet(folder / "parquet", jobs.lengths, num_files),
            )
            jobs.pack(f"{source}/*.parquet")
            costs = in_turn(
                {
                    "tightpack from parquet": lambda jobs=jobs, source=source: jobs.pack(f"{source}/*.parquet"),  # type: ignore[misc]
                    "tightpack from Arrow": lambda jobs=jobs, rows=rows: jobs.pack(rows),  # type: ignore[misc]
                    "pyarrow.parquet.read_table": partial(of_process, [sys.executable, "-c", READ, source]),
                },
                rounds,
            )
            read, job = costs["pyarrow.parquet.read_table"], costs["tightpack from Arrow"]
            costs["read_table, then from Arrow"] = [one.plus(other) for one, other in zip(read, job, strict=True)]
            where = "one file" if num_files == 1 else f"{num_files} files"
            cases[f"{jobs.facts['samples']:,} samples in {where}"] = case(costs, **jobs.facts)
    return cases


def jsonl(setting: Setting, rounds: int) -> dict[str, Case]:
    """From JSON lines of tokens, 1 M, on tmpfs."""
    with folder_in(setting.tmpfs) as folder:
        jobs = Jobs(folder, setting.samples(MILLION))
        rows, lines = (
            write_arrow(folder / "in", jobs.lengths),
            write_json_lines(folder / "rows.jsonl", jobs.lengths),
        )
        jobs.pack(lines)
        ways = {"tightpack from JSON lines": lambda: jobs.pack(lines), "tightpack from Arrow": lambda: jobs.pack(rows)}
        facts = {**jobs.facts, "gb_of_text": lines.stat().st_size / 1e9}
        return {f"{jobs.facts['samples']:,} samples": case(in_turn(ways, rounds), **facts)}


def compressed(setting: Setting, rounds: int) -> dict[str, Case]:
    """From Arrow with compressed output, 1 M, on tmpfs."""
    with folder_in(setting.tmpfs) as folder:
        jobs = Jobs(folder, setting.samples(MILLION))
        source = write_arrow(folder / "in", jobs.lengths)
        sizes = {}
        ways: dict[str, Callable[[], Cost]] = {}
        for codec in ("none", "lz4", "zstd"):
            ways[f"--compression {codec}"] = partial(jobs.pack, source, "--compression", codec)
            jobs.pack(source, "--compression", codec)
            sizes[codec] = sum(file.stat().st_size for file in jobs.out.iterdir()) / 1e9
        costs = in_turn(ways, rounds)
        return {f"{jobs.facts['samples']:,} samples": case(costs, **jobs.facts, output_gb=sizes)}


def again(setting: Setting, rounds: int) -> dict[str, Case]:
    """A job that comes again with nothing new, and with a file of 1 % as many samples, which is also packed alone."""
    with folder_in(setting.disk) as folder:
        jobs = Jobs(folder, setting.samples(MILLION), is_synced=True)
        source = write_arrow(folder / "in", jobs.lengths)
        more = write_arrow(folder / "more", jobs.lengths[: len(jobs.lengths) // 100])
        first, grown, alone = folder / "first", folder / "grown", folder / "alone" / "out"
        of_process(pack_command(source, first))
        of_process(pack_command(more, alone))

        def append() -> Cost:
            removed(grown)
            shutil.copytree(first, grown)
            os.sync()
            return of_process(pack_command(source, grown, more, "--append"))

        def pack_alone() -> Cost:
            removed(alone)
            os.sync()
            return of_process(pack_command(more, alone))

        ways = {
            "--append of 1 %": append,
            "packing the 1 % alone": pack_alone,
            "nothing new": lambda: of_process(pack_command(source, first)),
        }
        return {f"{jobs.facts['samples']:,} samples": case(in_turn(ways, rounds), **jobs.facts)}


PARTS = (
    Part(name="arrow", measure=arrow, rounds=5, minutes=5),
    Part(name="disk", measure=disk, rounds=5, minutes=2),
    Part(name="larger", measure=larger, rounds=3, minutes=6),
    Part(name="parquet", measure=parquet, rounds=5, minutes=10),
    Part(name="jsonl", measure=jsonl, rounds=3, minutes=5),
    Part(name="compressed", measure=compressed, rounds=5, minutes=3),
    Part(name="again", measure=again, rounds=9, minutes=3),
)
