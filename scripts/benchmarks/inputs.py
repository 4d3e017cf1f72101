"""The inputs of the benchmarks: lengths of several distributions, and datasets of random tokens with such lengths."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

Lengths = npt.NDArray[np.int64]
"""Tokens of each sample.  # shape: (num_samples,)"""

CAPACITY = 4096
VOCABULARY = 32_000
_BATCH, _ROW_GROUP = 10_000, 100_000


def reference_lengths(count: int, capacity: int = CAPACITY) -> Lengths:
    """Lognormal(5.2, 0.9) clipped to 8..capacity, seed 0: 271 tokens on average."""
    return _clipped(np.random.default_rng(0).lognormal(5.2, 0.9, count), 8, capacity)


def short_lengths(count: int) -> Lengths:
    """Lognormal(4.2, 0.9) clipped to 8..4096, seed 0: 100 tokens on average."""
    return _clipped(np.random.default_rng(0).lognormal(4.2, 0.9, count), 8, CAPACITY)


def distributions(count: int) -> dict[str, Lengths]:
    """Lengths of four kinds, by what they are called, all up to the capacity of 4,096."""
    draws = np.random.default_rng(0)
    modes = np.where(draws.random(count) < 0.8, draws.lognormal(4.4, 0.5, count), draws.normal(2600, 500, count))
    return {
        "reference, lognormal(5.2, 0.9)": reference_lengths(count),
        "heavy tail, lognormal(4.5, 1.6)": _clipped(draws.lognormal(4.5, 1.6, count), 1, CAPACITY),
        "uniform, 1 to 4,096": draws.integers(1, CAPACITY + 1, count),
        "two modes, 80 % short and 20 % long": _clipped(modes, 8, CAPACITY),
    }


def _clipped(lengths: npt.NDArray[np.float64], least: int, most: int) -> Lengths:
    return np.clip(lengths, least, most).astype(np.int64)


def batches(lengths: Lengths) -> Iterator[pa.RecordBatch]:
    """Record batches of random tokens, never many of them at a time; the same for the same lengths."""
    draws = np.random.default_rng(1)
    for first in range(0, len(lengths), _BATCH):
        offsets = np.concatenate([[0], np.cumsum(lengths[first : first + _BATCH])]).astype(np.int32)
        ids = pa.array(draws.integers(0, VOCABULARY, offsets[-1], np.int32))
        yield pa.record_batch({"input_ids": pa.ListArray.from_arrays(pa.array(offsets), ids)})


def write_arrow(path: Path, lengths: Lengths) -> Path:
    """A directory as `save_to_disk` leaves it, which packing and its peers read alike."""
    if not path.exists():
        import datasets  # noqa: PLC0415 - slow to import

        datasets.disable_progress_bars()
        datasets.Dataset(pa.Table.from_batches(batches(lengths))).save_to_disk(str(path))
    return path


def write_parquet(path: Path, lengths: Lengths, num_files: int = 1) -> Path:
    """A folder of parquet files with row groups of 100,000 rows, as pyarrow writes them unless told otherwise."""
    if not path.exists():
        path.mkdir(parents=True)
        bounds = np.linspace(0, len(lengths), num_files + 1).astype(int)
        for number in range(num_files):
            _one_parquet(path / f"part-{number:05d}.parquet", lengths[bounds[number] : bounds[number + 1]])
    return path


def _one_parquet(path: Path, lengths: Lengths) -> None:
    waiting: list[pa.RecordBatch] = []
    with pq.ParquetWriter(path, pa.schema([("input_ids", pa.list_(pa.int32()))])) as writer:
        for batch in batches(lengths):
            waiting.append(batch)
            if len(waiting) * _BATCH >= _ROW_GROUP:
                writer.write_table(pa.Table.from_batches(waiting), row_group_size=_ROW_GROUP)
                waiting = []
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting), row_group_size=_ROW_GROUP)


def write_json_lines(path: Path, lengths: Lengths) -> Path:
    """A file of JSON lines with tokens."""
    if not path.exists():
        with open(path, "w", encoding="ascii") as file:
            for batch in batches(lengths):
                for row in batch.to_pylist():
                    file.write(json.dumps(row, separators=(",", ":")) + "\n")
    return path
