"""Small tokenised datasets for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

INT32 = pa.int32()


def table(rows: list[dict[str, Any]], kind: pa.DataType = INT32) -> pa.Table:
    """Rows of integer lists."""
    names = list(rows[0]) if rows else ["input_ids"]
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.list_(kind)) for name in names]))


def save(rows: list[dict[str, Any]], folder: Path, kind: pa.DataType = INT32) -> Path:
    """Rows as a dataset directory."""
    datasets.Dataset(table(rows, kind)).save_to_disk(str(folder))
    return folder


def random_rows(count: int, seed: int = 0, longest: int = 60, padded: bool = False) -> list[dict[str, Any]]:
    """Rows with labels, of skewed lengths; some without targets."""
    draws = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        length = 1 + int((longest - 1) * draws.random() ** 2)
        ids = draws.integers(0, 500, length)
        row = {"input_ids": ids.tolist(), "labels": np.where(draws.random(length) < 0.4, -100, ids).tolist()}
        if padded:
            row["attention_mask"] = (draws.random(length) < 0.8).astype(int).tolist()
        rows.append(row)
    return rows


TOPICS = ["sorting a list of numbers", "the weather in Lisbon", "baking bread at home", "prime numbers", "old trains"]


def rows_with_vectors(count: int, width: int = 6) -> list[dict[str, Any]]:
    draws = np.random.default_rng(0)
    return [row | {"vector": draws.normal(size=width).tolist()} for row in random_rows(count)]


def write_jsonl(rows: list[dict[str, Any]], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def topical(path: Path, count: int = 120) -> Path:
    """Tokenised rows with texts about a few topics."""
    draws = np.random.default_rng(0)
    rows = []
    for row in range(count):
        topic = row % len(TOPICS)
        ids = np.concatenate([topic * 20 + draws.integers(0, 20, draws.integers(5, 20)), [500, 501, 502]])
        labels = np.where(np.arange(len(ids)) < len(ids) - 3, -100, ids)
        text = f"Question {row} about {TOPICS[topic]}, please."
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist(), "text": text})
    datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path
