"""The same rows in every kind of input that there is."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tests.pipeline.samples import random_rows, save, table

Rows = list[dict[str, Any]]
ROWS = random_rows(300)
LONGEST = 60


def stream(rows: Rows, path: Path, schema_of: pa.Table | None = None, compression: str | None = None) -> Path:
    content = schema_of if schema_of is not None else table(rows)
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(str(path), content.schema, options=options) as writer:
        writer.write_table(content, max_chunksize=70)
    return path


def json_lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def as_arrow_file(rows: Rows, folder: Path) -> Path:
    with pa.ipc.new_file(str(folder / "x.arrow"), table(rows).schema) as writer:
        writer.write_table(table(rows), max_chunksize=70)
    return folder / "x.arrow"


def as_sliced_chunks(rows: Rows, folder: Path) -> Path:
    padded = [*random_rows(13, seed=5), *rows, *random_rows(7, seed=6)]
    chunks = [table(padded).slice(13, 100), table(padded).slice(113, len(rows) - 100)]
    datasets.Dataset(pa.concat_tables(chunks)).save_to_disk(str(folder / "x"))
    return folder / "x"


def as_parquet(rows: Rows, folder: Path, kind: pa.DataType | None = None, **options: Any) -> Path:
    content = table(rows) if kind is None else table(rows).cast(pa.schema([(n, kind) for n in rows[0]]))
    pq.write_table(content, folder / "x.parquet", **options)
    return folder / "x.parquet"


def as_several_files(rows: Rows, folder: Path) -> str:
    for i in range(12):
        write(folder / f"part-{i:02d}.jsonl", json_lines(rows[i * 25 : (i + 1) * 25]))
    return f"{folder}/part-*.jsonl"


def as_fixed_size(rows: Rows, folder: Path) -> Path:
    ids = pa.array([row["input_ids"] for row in rows], pa.list_(pa.int64(), len(rows[0]["input_ids"])))
    return stream(rows, folder / "x.arrow", pa.table({"input_ids": ids}))


def as_memory_url(rows: Rows, folder: Path) -> str:
    with fsspec.open(f"memory://{folder.name}/x.parquet", "wb") as file:
        pq.write_table(table(rows), file)
    return f"memory://{folder.name}/x.parquet"


BOM, UNUSUAL = "\ufeff".encode(), " \u2028 \u0085 \u2029 "


KINDS: dict[str, Callable[[Rows, Path], Path | str]] = {
    "saved": lambda rows, folder: save(rows, folder / "x"),
    "saved int64": lambda rows, folder: save(rows, folder / "x", pa.int64()),
    "saved int16": lambda rows, folder: save(rows, folder / "x", pa.int16()),
    "saved large_list": lambda rows, folder: stream(
        rows, folder / "x.arrow", table(rows).cast(pa.schema([(n, pa.large_list(pa.int32())) for n in rows[0]]))
    ),
    "sliced chunks": as_sliced_chunks,
    "arrow stream": lambda rows, folder: stream(rows, folder / "x.arrow"),
    "arrow file": as_arrow_file,
    "arrow lz4": lambda rows, folder: stream(rows, folder / "x.arrow", compression="lz4"),
    "arrow zstd": lambda rows, folder: stream(rows, folder / "x.arrow", compression="zstd"),
    "parquet": as_parquet,
    "parquet row groups": lambda rows, folder: as_parquet(rows, folder, row_group_size=37),
    "parquet large_list of int64": lambda rows, folder: as_parquet(rows, folder, pa.large_list(pa.int64())),
    "jsonl": lambda rows, folder: write(folder / "x.jsonl", json_lines(rows)),
    "jsonl without last newline": lambda rows, folder: write(folder / "x.jsonl", json_lines(rows)[:-1]),
    "jsonl with CRLF, BOM and blank lines": lambda rows, folder: write(
        folder / "x.jsonl", BOM + json_lines(rows).replace(b"\n", b"\r\n\r\n")
    ),
    "jsonl with other columns": lambda rows, folder: write(
        folder / "x.jsonl",
        "".join(
            json.dumps({"text": UNUSUAL, **row, "n": i}, ensure_ascii=False) + "\n" for i, row in enumerate(rows)
        ).encode(),
    ),
    "jsonl.gz": lambda rows, folder: write(folder / "x.jsonl.gz", gzip.compress(json_lines(rows))),
    "jsonl.gz of two members": lambda rows, folder: write(
        folder / "x.jsonl.gz", gzip.compress(json_lines(rows[:9])) + gzip.compress(json_lines(rows[9:]))
    ),
    "jsonl.zst": lambda rows, folder: write(folder / "x.jsonl.zst", zstandard.compress(json_lines(rows))),
    "json array": lambda rows, folder: write(folder / "x.json", json.dumps(rows, indent=1).encode()),
    "json lines": lambda rows, folder: write(folder / "x.json", json_lines(rows)),
    "glob": as_several_files,
    "file URL": lambda rows, folder: f"file://{as_parquet(rows, folder)}",
    "memory URL": as_memory_url,
}
