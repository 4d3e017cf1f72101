"""Inputs on an object store: a real S3 protocol server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from tests.conftest import Run
from tests.pipeline.oracle import assert_packed, expect
from tests.pipeline.samples import random_rows, save, table

ROWS = random_rows(150)
BUCKET = "bucket"

pytestmark = pytest.mark.needs("moto", "s3fs")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    type(fsspec.filesystem("s3")).clear_instance_cache()
    system = fsspec.filesystem("s3", use_listings_cache=False)
    system.mkdir(BUCKET)
    yield system
    system.rm(BUCKET, recursive=True)
    type(system).clear_instance_cache()
    server.stop()


def test_dataset_directory_and_parquet_on_s3(run: Run, tmp_path: Path, store: fsspec.AbstractFileSystem) -> None:
    save(ROWS[:100], tmp_path / "in")
    store.put(str(tmp_path / "in"), f"{BUCKET}/in", recursive=True)
    with store.open(f"{BUCKET}/more/x.parquet", "wb") as file:
        pq.write_table(table(ROWS[100:]), file)
    inputs = [f"s3://{BUCKET}/in", f"s3://{BUCKET}/more/*.parquet"]
    ended = run("pack", *inputs, "--output", tmp_path / "out", "--max-length", 60, "--json")
    assert ended.code == 0, ended.err
    assert_packed(tmp_path / "out", expect(ROWS, 60), ended.json)
    assert not list((tmp_path / "cache").rglob("downloads/*")), "copies are kept for the run only"
    assert run("verify", tmp_path / "out", "--source", inputs[0], "--source", inputs[1]).code == 0

    ended = run("pack", *inputs, "--output", tmp_path / "out", "--max-length", 60, "--json")
    assert ended.json["status"] == "up_to_date"
    assert "fetching" not in ended.err, "the content hash is remembered by the store's ETag"

    with store.open(f"{BUCKET}/more/x.parquet", "wb") as file:
        pq.write_table(table(ROWS[101:]), file)
    ended = run("pack", *inputs, "--output", tmp_path / "out", "--max-length", 60)
    assert ended.code == 2
    assert "content of the inputs" in ended.err


def test_an_object_that_is_replaced_while_it_is_fetched(
    run: Run, tmp_path: Path, store: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(rows: list[dict[str, object]]) -> None:
        with store.open(f"{BUCKET}/x.parquet", "wb") as file:
            pq.write_table(table(rows), file)

    put(ROWS)
    kind = type(store)
    get_file = kind.get_file

    def replaced_first(system: fsspec.AbstractFileSystem, *arguments: object) -> object:
        put(ROWS[1:])
        return get_file(system, *arguments)

    monkeypatch.setattr(kind, "get_file", replaced_first)
    ended = run("pack", f"s3://{BUCKET}/x.parquet", "--output", tmp_path / "out", "--max-length", 60)
    assert ended.code == 3
    assert "changed while it was being packed" in ended.err
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "cache").rglob("downloads/*"))


def test_missing_on_s3(run: Run, tmp_path: Path, store: fsspec.AbstractFileSystem) -> None:
    ended = run("pack", f"s3://{BUCKET}/nothing.parquet", "--output", tmp_path / "out", "--max-length", 60)
    assert ended.code == 3
    assert f"s3://{BUCKET}/nothing.parquet" in ended.err
