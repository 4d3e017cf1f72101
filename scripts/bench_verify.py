"""What `verify` costs beside reading and hashing the same bytes, in turn, in one process and with as many workers.

    scripts/bench verify [--tokens N] [--rounds N] [--folder DIR] [--json FILE]

Both are warm: compiled, imported, and the files in the page cache.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from bench_common import CAPACITY, keep, reference_lengths, spread

from pipeline import PackOptions, RunOptions, pack, verify
from pipeline.base.digests import hash_file
from pipeline.base.engine import LocalEngine, available_cores


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=40_000_000, help="about how many are packed")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the dataset is written for the time of the run")
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        keep(_measure(Path(folder), options.tokens, options.rounds), options.json)


def _measure(folder: Path, tokens: int, rounds: int) -> dict[str, object]:
    run = RunOptions(cache_dir=folder / "cache")
    packed = folder / "packed"
    manifest = pack(
        _source(folder / "tokens.arrow", tokens), packed, PackOptions(max_length=CAPACITY), run=run
    ).manifest
    files = [path for path in packed.iterdir() if path.is_file()]
    workers = available_cores()

    def hash_all() -> None:
        with LocalEngine(workers) as engine:
            list(engine.map(hash_file, files))

    def verify_all() -> None:
        assert verify(packed, run=run).status == "verified"

    hash_all()
    verify_all()
    hashing, verifying, ratios, cpu_ratios = [], [], [], []
    for _ in range(rounds):
        hashing.append(_timed(hash_all))
        verifying.append(_timed(verify_all))
        ratios.append(verifying[-1][0] / hashing[-1][0])
        cpu_ratios.append(verifying[-1][1] / hashing[-1][1])
    return {
        "tokens": manifest.counts.tokens_packed,
        "bytes": sum(file.stat().st_size for file in files),
        "workers": workers,
        "hash_seconds": spread([wall for wall, _ in hashing]),
        "hash_cpu_seconds": spread([cpu for _, cpu in hashing]),
        "verify_seconds": spread([wall for wall, _ in verifying]),
        "verify_cpu_seconds": spread([cpu for _, cpu in verifying]),
        "ratio": spread(ratios),
        "cpu_ratio": spread(cpu_ratios),
    }


def _source(path: Path, tokens: int) -> Path:
    lengths = reference_lengths(max(1, tokens // 270))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    values = np.random.default_rng(0).integers(0, 50_000, offsets[-1], np.int32)
    ids = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
    with pa.ipc.new_stream(str(path), pa.schema({"input_ids": ids.type})) as stream:
        stream.write_table(pa.table({"input_ids": ids}), max_chunksize=1000)
    return path


def _timed(act: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the wall and of all cores."""
    wall, cpu = time.perf_counter(), time.process_time()
    act()
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
