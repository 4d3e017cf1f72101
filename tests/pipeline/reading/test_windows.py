"""Windows depend on the rows' lengths alone."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.reading.mapped import map_file
from pipeline.reading.windows import SplitRows


def greedy(lengths: list[int], most_rows: int, most_tokens: int) -> list[tuple[int, int]]:
    """(rows, tokens) of each window, row by row."""
    windows: list[tuple[int, int]] = []
    rows = tokens = 0
    for length in lengths:
        if rows and (rows == most_rows or tokens + length > most_tokens):
            windows.append((rows, tokens))
            rows = tokens = 0
        rows, tokens = rows + 1, tokens + length
    return [*windows, (rows, tokens)] if rows else windows


@settings(max_examples=200)
@given(
    lengths=st.lists(st.integers(0, 12), max_size=40),
    batch=st.integers(1, 9),
    split_at=st.integers(0, 40),
    most_rows=st.integers(1, 50),
    most_tokens=st.integers(1, 100),
)
def test_cut_is_greedy_whatever_the_files_and_batches(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    batch: int,
    split_at: int,
    most_rows: int,
    most_tokens: int,
) -> None:
    folder = tmp_path_factory.mktemp("w")
    files = []
    for name, part in (("a", lengths[:split_at]), ("b", lengths[split_at:])):
        table = pa.table({"input_ids": pa.array([[1] * n for n in part], pa.list_(pa.int32()))})
        path = str(Path(folder) / f"{name}.arrow")
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=batch)
        mapped = map_file(path, {}, path)
        assert mapped is not None
        files.append(mapped)
    windows = SplitRows(files).cut(most_rows, most_tokens)
    assert [(w.num_rows, w.num_tokens) for w in windows] == greedy(lengths, most_rows, most_tokens)
    assert [w.index for w in windows] == list(range(len(windows)))
    firsts = [sum(v.num_rows for v in windows[:i]) for i in range(len(windows))]
    assert [w.first_row for w in windows] == firsts
