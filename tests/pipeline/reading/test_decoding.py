"""What is decoded is written in the form that packing reads: valid ids need 32 bits, and masks 8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.format.options import InputOptions
from pipeline.reading.columns import Selection
from pipeline.reading.decoding.spool import DecodeTask, decode
from pipeline.reading.inputs import resolve
from tests.conftest import Run
from tests.pipeline.oracle import assert_packed, expect
from tests.pipeline.reading.inputs import json_lines, stream, write

Rows = list[dict[str, Any]]
ROWS: Rows = [
    {"input_ids": [5, 6, 7], "labels": [5, -100, 7], "attention_mask": [1, 1, 0]},
    {"input_ids": [], "labels": [], "attention_mask": []},
    {"input_ids": [2**31 - 1], "labels": [-100], "attention_mask": [1]},
]
WIDE = {"input_ids": [8, 9, 2**40], "labels": [8, 9, -(2**40)], "attention_mask": [1, 1, 0]}
"""What stands in padding may be anything."""


def typed(rows: Rows, kind: Callable[[pa.DataType], pa.DataType] = pa.list_) -> pa.Table:
    return pa.Table.from_pylist(rows, pa.schema([(name, kind(pa.int64())) for name in rows[0]]))


WRITERS: dict[str, Callable[[Rows, Path], object]] = {
    "in.parquet": lambda rows, path: pq.write_table(typed(rows), path),
    "large.parquet": lambda rows, path: pq.write_table(typed(rows, pa.large_list), path),
    "in.arrow": lambda rows, path: stream([], path, typed(rows), "lz4"),
    "in.jsonl": lambda rows, path: write(path, json_lines(rows)),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("more", [[], [WIDE]], ids=["narrow", "wide"])
def test_integers_are_as_narrow_as_valid_ones_may_be(run: Run, tmp_path: Path, name: str, more: Rows) -> None:
    rows, source = ROWS + more, tmp_path / name
    WRITERS[name](rows, source)
    ((file,),) = (entry.files() for entry in resolve(source, InputOptions()))
    task = DecodeTask(file=file, path=file.path, selection=Selection(), spool=tmp_path / "spool.arrow")
    decode(task, lambda _: None)
    with pa.memory_map(str(task.spool)) as opened:
        spooled = pa.ipc.open_stream(opened).read_all()
    assert spooled.to_pylist() == rows
    kinds = [field.type.value_type.bit_width for field in spooled.schema]
    assert kinds == ([64, 64, 64] if more else [32, 32, 8])
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 8, "--keep-untrainable", "--json")
    assert ended.code == 0, ended.err
    assert_packed(tmp_path / "out", expect(rows, 8, keep_untrainable=True), ended.json)
