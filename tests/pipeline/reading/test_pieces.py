"""A file of parquet is decoded in pieces: the same bytes, and rows as the file numbers them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import Run
from tests.pipeline.samples import random_rows, table

FLAGS = ["--max-length", 80, "--num-workers", 2]


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row group is a piece of its own."""
    monkeypatch.setattr("pipeline.reading.input_rows._PIECE_BYTES", 1)


def packed(run: Run, source: Path, out: Path) -> dict[str, bytes]:
    """The files of a dataset that a run gives, which `verify` finds to be the source's."""
    ended = run("pack", source, "--output", out, *FLAGS)
    assert ended.code == 0, ended.err
    assert run("verify", out, "--source", source).code == 0
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_pieces_give_the_bytes_of_the_whole(run: Run, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(table(random_rows(100)), source, row_group_size=7)
    whole = packed(run, source, tmp_path / "whole")
    request.getfixturevalue("cut")
    assert packed(run, source, tmp_path / "cut") == whole


@pytest.mark.usefixtures("cut")
def test_a_row_is_named_as_the_file_has_it(run: Run, tmp_path: Path) -> None:
    rows = random_rows(40)
    rows[33] = rows[33] | {"input_ids": [1, None, 2]}
    pq.write_table(table(rows), tmp_path / "in.parquet", row_group_size=7)
    ended = run("pack", tmp_path / "in.parquet", "--output", tmp_path / "out", *FLAGS)
    assert (ended.code, "in.parquet, row 33" in ended.err) == (3, True), ended.err
