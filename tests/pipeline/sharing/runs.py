"""What the tests of shared runs pack: two splits, several windows of each, and vectors."""

from __future__ import annotations

from pathlib import Path

import datasets
import pyarrow as pa

from tests.pipeline.samples import random_rows, rows_with_vectors, table

FLAGS = ("--max-length", 80, "--window-samples", 40, "--shard-size", "4KB")
RELATED = ("--strategy", "threshold-filtering", "--set", "embedder=column", "--set", "column=vector")


def two_splits(folder: Path) -> Path:
    """A dataset directory that is mapped."""
    parts = {"train": datasets.Dataset(table(random_rows(230))), "test": datasets.Dataset(table(random_rows(90, 1)))}
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return folder


def with_vectors(path: Path) -> Path:
    """A file of parquet that has to be decoded."""
    pa.parquet.write_table(pa.Table.from_pylist(rows_with_vectors(230)), path, row_group_size=50)
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
