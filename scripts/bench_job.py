"""The whole job as a process, against its peer and against what the disk allows.

On tmpfs: `pack` against TRL's `pack_dataset(..., "bfd")` over the whole dataset, followed by `save_to_disk`,
on the same input. On disk: `pack` against `cp -r` of its own output and `sync`; and a job that comes again, with
nothing new and with `--append`. Memory is the peak of the anonymous memory of all processes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import datasets
import numpy as np
import pyarrow as pa
from bench_common import CAPACITY, keep, reference_lengths, spread

PEER = """
import sys, datasets
from trl import pack_dataset
dataset = datasets.load_from_disk(sys.argv[1])
packed = pack_dataset(dataset, int(sys.argv[3]), "bfd", map_kwargs={"batch_size": len(dataset)})
packed.save_to_disk(sys.argv[2])
print(len(packed))
"""


def make_input(folder: Path, count: int) -> None:
    """A dataset directory of random token ids with the reference lengths, as `save_to_disk` leaves it."""
    if folder.exists():
        return
    offsets = np.concatenate([[0], np.cumsum(reference_lengths(count))])
    draws = np.random.default_rng(1)
    parts = []
    for start in range(0, count, 100_000):
        cut = offsets[start : start + 100_001] - offsets[start]
        ids = pa.array(draws.integers(0, 32_000, cut[-1], np.int32))
        parts.append(pa.table({"input_ids": pa.ListArray.from_arrays(pa.array(cut.astype(np.int32)), ids)}))
    datasets.Dataset(pa.concat_tables(parts)).save_to_disk(str(folder))


def timed(command: list[str], prepare: Callable[[], object]) -> float:
    """Seconds of a process that must succeed."""
    prepare()
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def ours(source: Path, output: Path) -> list[str]:
    """The command that is measured."""
    flags = ["--max-length", str(CAPACITY), "--cache-dir", str(output.parent / "cache")]
    return [sys.executable, "-m", "pipeline", "pack", str(source), "--output", str(output), *flags]


def peak_anonymous(command: list[str]) -> float:
    """Peak of the summed RssAnon of a process and its descendants, in GB, sampled every 5 ms."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, sum(_anonymous(pid) for pid in _family(process.pid)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    done.set()
    watcher.join()
    assert code == 0
    return peak / 1e6


def _family(pid: int) -> list[int]:
    family = [pid]
    for one in family:
        try:
            with open(f"/proc/{one}/task/{one}/children", encoding="utf-8") as file:
                family += map(int, file.read().split())
        except OSError:
            continue
    return family


def _anonymous(pid: int) -> int:
    """RssAnon in kB."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("RssAnon")), 0)
    except OSError:
        return 0


def against_peer(folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """Whole processes in turn, on tmpfs."""
    source = folder / f"in-{count}"
    make_input(source, count)
    peer_out, out = folder / "peer", folder / "ours"

    def clean() -> None:
        for path in (peer_out, out, folder / "cache"):
            shutil.rmtree(path, ignore_errors=True)
        for cached in source.glob("cache-*.arrow"):
            cached.unlink()

    peer = [sys.executable, "-c", PEER, str(source), str(peer_out), str(CAPACITY)]
    timed(ours(source, out), clean)  # compiles, and touches the pages
    peers, mine, verifies = [], [], []
    for _ in range(rounds):
        peers.append(timed(peer, clean))
        mine.append(timed(ours(source, out), clean))
        verifies.append(timed([sys.executable, "-m", "pipeline", "verify", str(out)], lambda: None))
    against_source = timed(
        [sys.executable, "-m", "pipeline", "verify", str(out), "--source", str(source)], lambda: None
    )
    clean()
    return {
        "samples": count,
        "seconds": spread(mine),
        "peer_seconds": spread(peers),
        "times_faster": spread([p / m for p, m in zip(peers, mine, strict=True)]),
        "verify_seconds": spread(verifies),
        "verify_source_seconds": against_source,
    }


def against_copy(folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """The job with its fsyncs against copying what it wrote, on disk."""
    source, out, copy = folder / f"in-{count}", folder / "ours", folder / "copy"
    make_input(source, count)
    os.sync()

    def clean() -> None:
        for path in (out, copy, folder / "cache"):
            shutil.rmtree(path, ignore_errors=True)
        os.sync()

    def drop_copy() -> None:
        shutil.rmtree(copy, ignore_errors=True)
        os.sync()

    mine, copies = [], []
    for _ in range(rounds):
        mine.append(timed(ours(source, out), clean))
        copies.append(timed(["sh", "-c", f"cp -r --reflink=never {out} {copy} && sync"], drop_copy))
    clean()
    return {
        "samples": count,
        "seconds": spread(mine),
        "copy_seconds": spread(copies),
        "ratio": spread([m / c for m, c in zip(mine, copies, strict=True)]),
    }


def again(folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """A job that comes again with nothing new, and with a file of 1 % as many samples, which is also packed alone."""
    source, more, grown, first = (folder / name for name in (f"in-{count}", f"in-{count // 100}", "grown", "ours"))
    make_input(source, count)
    make_input(more, count // 100)
    alone = folder / "alone" / "out"
    timed(ours(source, first), lambda: None)
    timed(ours(more, alone), lambda: None)

    def as_before() -> None:
        shutil.rmtree(grown, ignore_errors=True)
        shutil.copytree(first, grown)
        os.sync()

    def drop_alone() -> None:
        shutil.rmtree(alone)
        os.sync()

    append = [*ours(source, grown), str(more), "--append"]
    unchanged, appends, alones = [], [], []
    for _ in range(rounds):
        unchanged.append(timed(ours(source, first), lambda: None))
        alones.append(timed(ours(more, alone), drop_alone))
        appends.append(timed(append, as_before))
    return {
        "samples": count,
        "unchanged_seconds": spread(unchanged),
        "append_seconds": spread(appends),
        "alone_seconds": spread(alones),
        "append_more_than_alone_seconds": spread([a - b for a, b in zip(appends, alones, strict=True)]),
    }


def memory(folder: Path, counts: list[int]) -> dict[str, float]:
    """Peak anonymous memory in GB, by number of samples."""
    peaks = {}
    for count in counts:
        source, out = folder / f"in-{count}", folder / "ours"
        make_input(source, count)
        shutil.rmtree(out, ignore_errors=True)
        peaks[f"{count:,}"] = peak_anonymous(ours(source, out))
        shutil.rmtree(out, ignore_errors=True)
    return peaks


def help_seconds(rounds: int) -> dict[str, float]:
    """`python -m pipeline --help` as a process."""
    return spread([timed([sys.executable, "-m", "pipeline", "--help"], lambda: None) for _ in range(rounds)])


@click.command()
@click.option("--samples", default=1_000_000, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--tmpfs", type=click.Path(path_type=Path), default=Path("/dev/shm/bench-job"), show_default=True)
@click.option("--disk", type=click.Path(path_type=Path), default=Path("bench-job"), show_default=True)
@click.option("--only", type=click.Choice(["peer", "copy", "again", "memory", "help"]), multiple=True)
@click.option("--json", "path", type=click.Path(path_type=Path))
def main(samples: int, rounds: int, tmpfs: Path, disk: Path, only: tuple[str, ...], path: Path | None) -> None:
    """Measure the job; about 20 GB of disk and 7 GB of tmpfs for a million samples."""
    parts: dict[str, Callable[[], Any]] = {
        "peer": lambda: against_peer(tmpfs, samples, rounds),
        "copy": lambda: against_copy(disk, samples, rounds),
        "again": lambda: again(disk, samples, rounds),
        "memory": lambda: memory(disk, [samples, 4 * samples]),
        "help": lambda: help_seconds(rounds),
    }
    for folder in (tmpfs, disk):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        figures = {name: measure() for name, measure in parts.items() if not only or name in only}
    finally:
        for folder in (tmpfs, disk):
            shutil.rmtree(folder)
    keep(figures, path)


if __name__ == "__main__":
    main()
