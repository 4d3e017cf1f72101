"""What a scheduled job costs when it comes again: nothing new, or one file more.

    scripts/bench rerun [--samples N] [--rounds N] [--folder DIR] [--json FILE]

Whole processes with the start of their interpreter, in turn: a run over a dataset that is packed already, `--append` of
a file of 1 % as many samples, and packing that file alone. The file system must know hard links.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
from bench_common import CAPACITY, keep, reference_lengths, spread


@click.command()
@click.option("--samples", default=1_000_000, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where all is written for the time of the run.")
@click.option("--json", "path", type=click.Path(path_type=Path))
def main(samples: int, rounds: int, folder: Path | None, path: Path | None) -> None:
    """Measure, and print the figures."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        keep({"rerun": _measure(Path(made), samples, rounds)}, path)


def _measure(folder: Path, samples: int, rounds: int) -> dict[str, object]:
    inputs, alone = folder / "inputs", folder / "alone"
    for each in (inputs, alone):
        each.mkdir()
    tokens = _write(inputs / "a.arrow", samples, 0)
    _write(alone / "b.arrow", samples // 100, 1)
    first, grown, small = folder / "first", folder / "grown", folder / "small"
    _pack(folder, inputs, first)
    _pack(folder, alone, small)
    seconds: dict[str, list[float]] = {"no_change": [], "append": [], "alone": []}
    for _ in range(rounds):
        seconds["no_change"].append(_pack(folder, inputs, first))
        shutil.rmtree(small)
        seconds["alone"].append(_pack(folder, alone, small))
        shutil.copytree(first, grown)
        shutil.copy(alone / "b.arrow", inputs / "b.arrow")
        seconds["append"].append(_pack(folder, inputs, grown, "--append"))
        (inputs / "b.arrow").unlink()
        shutil.rmtree(grown)
    more = [append - alone for append, alone in zip(seconds["append"], seconds["alone"], strict=True)]
    return {
        "samples": samples,
        "tokens": tokens,
        "seconds": {name: spread(measured) for name, measured in seconds.items()},
        "append_more_than_alone_seconds": spread(more),
    }


def _pack(folder: Path, inputs: Path, output: Path, *flags: str) -> float:
    """Seconds of a run that must succeed."""
    flags = ("--output", str(output), "--max-length", str(CAPACITY), "--cache-dir", str(folder / "cache"), *flags)
    command = [sys.executable, "-m", "pipeline", "pack", str(inputs / "*.arrow"), *flags]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def _write(path: Path, samples: int, seed: int) -> int:
    """Write samples of the reference's lengths; returns their tokens."""
    offsets = np.concatenate([[0], np.cumsum(reference_lengths(samples))])
    draws = np.random.default_rng(seed)
    with pa.ipc.new_stream(str(path), pa.schema({"input_ids": pa.list_(pa.int32())})) as stream:
        for start in range(0, samples, 10_000):
            cut = offsets[start : start + 10_001] - offsets[start]
            ids = pa.array(draws.integers(0, 32_000, cut[-1], np.int32))
            lists = pa.ListArray.from_arrays(pa.array(cut.astype(np.int32)), ids)
            stream.write_table(pa.table({"input_ids": lists}), max_chunksize=1000)
    return int(offsets[-1])


if __name__ == "__main__":
    main()
