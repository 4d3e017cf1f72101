"""Large files of an object store are read by ranges: the columns that are needed, and of one version alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.reading.decoding import json_lines, pieces
from pipeline.reading.remote import ranges
from tests.conftest import Run
from tests.pipeline.objects.server import Proxy
from tests.pipeline.reading.inputs import json_lines as lines_of_rows
from tests.pipeline.reading.inputs import write
from tests.pipeline.samples import random_rows, table

pytestmark = pytest.mark.needs("moto", "s3fs")

ROWS = random_rows(300)
FLAGS = ["--max-length", 80, "--num-workers", 2]
FOOTER = 1 << 16
"""What Arrow looks for a footer in."""


def as_parquet(folder: Path) -> Path:
    """Rows beside texts that take most of the file."""
    draws = np.random.default_rng(0)
    texts = pa.array([draws.bytes(1500).hex() for _ in ROWS])
    rows = table(ROWS)
    pq.write_table(rows.add_column(1, "source", texts), folder / "in.parquet", row_group_size=40)
    return folder / "in.parquet"


def as_lines(folder: Path) -> Path:
    return write(folder / "in.jsonl", lines_of_rows(ROWS) * 15)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, pieces and requests are as large, for their rows, as real ones are."""
    monkeypatch.setattr("pipeline.reading.cache._COPIED_BYTES", 0)
    monkeypatch.setattr(ranges, "_FIRST_BYTES", FOOTER)
    monkeypatch.setattr(ranges, "_BLOCK_BYTES", 2 * FOOTER)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 5 * FOOTER)
    monkeypatch.setattr(json_lines, "_HEAD_BYTES", 1 << 12)
    monkeypatch.setattr(json_lines, "_BUFFER_BYTES", FOOTER)
    monkeypatch.setattr("pipeline.reading.decoding.spool.JSON_BYTES", FOOTER)
    monkeypatch.setattr("pipeline.reading.decoding.beside._BLOCK_BYTES", FOOTER)


@pytest.fixture
def put(store: fsspec.AbstractFileSystem, bucket: str) -> Callable[[Path], str]:
    def put(path: Path) -> str:
        store.put_file(str(path), f"{bucket}/{path.name}")
        return f"s3://{bucket}/{path.name}"

    return put


@pytest.mark.parametrize("kind", [as_parquet, as_lines])
def test_no_more_is_asked_for_than_is_needed(
    run: Run, tmp_path: Path, proxy: Proxy, put: Callable[[Path], str], kind: Callable[[Path], Path]
) -> None:
    source = kind(tmp_path)
    url, size = put(source), source.stat().st_size
    assert run("pack", source, "--output", tmp_path / "local", *FLAGS).code == 0
    proxy.asked.clear()
    ended = run("pack", url, "--output", tmp_path / "out", *FLAGS)
    assert ended.code == 0, ended.err
    assert "fetching" not in ended.err
    asked = [stop - start for _, start, stop in proxy.asked]
    for path in (tmp_path / "local").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert run("verify", tmp_path / "out", "--source", url).code == 0
    blocks = size // (2 * FOOTER)
    if kind is as_lines:
        needed, num_parts = size, blocks
    else:
        parts = list(chunks(source, {"input_ids", "labels"}))
        needed, num_parts = sum(chunk.total_compressed_size for chunk in parts), len(parts)
        assert needed + 2 * FOOTER < size / 5
    assert sum(asked) < size + 1.3 * needed + 2 * FOOTER, "once for the hash, and then what is needed"
    assert len(asked) < blocks + 1.5 * num_parts + 6


def chunks(path: Path, names: set[str]) -> Iterator[pq.ColumnChunkMetaData]:
    metadata = pq.read_metadata(path)
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema.split(".")[0] in names:
                yield column


@pytest.mark.parametrize("number", [3, 20], ids=["hashed", "decoded"])
def test_an_object_that_is_replaced_while_it_is_read(
    run: Run, tmp_path: Path, proxy: Proxy, put: Callable[[Path], str], number: int
) -> None:
    url = put(as_parquet(tmp_path))
    pq.write_table(table(ROWS[1:]), tmp_path / "other.parquet")
    (tmp_path / "other").mkdir()
    other = (tmp_path / "other.parquet").rename(tmp_path / "other" / "in.parquet")
    done: list[str] = []

    def replaced(request: str, _: int) -> None:
        if len(proxy.asked) == number and not done:
            done.append(request)
            put(other)

    proxy.asked.clear()
    proxy.fault = replaced
    ended = run("pack", url, "--output", tmp_path / "out", *FLAGS)
    assert done
    assert (ended.code, "changed while it was being packed" in ended.err) == (3, True), ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("fault", "code"), [("half", 0), ("denied", 3)])
def test_a_range_that_does_not_arrive(
    run: Run, tmp_path: Path, proxy: Proxy, put: Callable[[Path], str], fault: str, code: int
) -> None:
    url = put(as_lines(tmp_path))
    proxy.asked.clear()
    proxy.fault = lambda request, _: fault if len(proxy.asked) == 8 and request.startswith("GET") else None
    ended = run("pack", url, "--output", tmp_path / "out", *FLAGS)
    assert ended.code == code, ended.err
    assert code == 0 or f"input {url}: " in ended.err


def test_raw_rows_are_read_by_ranges(
    run: Run, tmp_path: Path, put: Callable[[Path], str], tokenizing: Callable[[object], list[object]]
) -> None:
    local = tokenizing("the last")
    remote = [put(part) if isinstance(part, Path) and part.suffix == ".jsonl" else part for part in local]
    for name, command in {"local": local, "remote": remote}.items():
        ended = run(*command, "--output", tmp_path / name)
        assert ended.code == 0, ended.err
        assert "fetching" not in ended.err
    for path in (tmp_path / "local").iterdir():
        assert (tmp_path / "remote" / path.name).read_bytes() == path.read_bytes()
