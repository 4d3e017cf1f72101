"""Files of a few kilobytes that stand for gigabytes are refused, with a message, before they take the memory."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.reading.decoding import growth
from tests.conftest import Run
from tests.pipeline.hostile.processes import forked
from tests.pipeline.samples import write_jsonl

GIGABYTES = 8
PIECE = 1 << 24
"""Bytes that are compressed once and put behind each other, as gzip and Zstandard allow."""

MOST_MEMORY = 1.5e9
FLAGS = ["--max-length", "60"]
ZEROS = pa.table({"input_ids": pa.array([[0] * 50_000] * 40, pa.list_(pa.int32()))})
"""16 MB, or 8 MB, of which next to nothing is left."""


def endless(head: bytes, piece: bytes, compress: Callable[[bytes], bytes]) -> bytes:
    """A head, and gigabytes of a piece."""
    return compress(head) + compress(piece * (PIECE // len(piece))) * (GIGABYTES * 1_000_000_000 // PIECE)


ENDLESS = {
    "a.jsonl.gz": (endless(b'{"input_ids": [0', b",0", gzip.compress), "line 1"),
    "b.jsonl.zst": (endless(b'{"input_ids": [1]}\n{"input_ids": [0', b",0", zstandard.compress), "line 2"),
    "c.json.zst": (endless(b'[{"input_ids": [1]}, {"input_ids": [0', b",0", zstandard.compress), "row 1"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_row_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    content, where = ENDLESS[name]
    (tmp_path / name).write_bytes(content)
    most = growth.MOST_ROW_BYTES if name == "b.jsonl.zst" else 1 << 24
    monkeypatch.setattr(growth, "MOST_ROW_BYTES", most)
    ended = forked(["pack", tmp_path / name, "--output", tmp_path / "out", *FLAGS], tmp_path)
    assert (ended.code, ended.said.count("ERROR")) == (3, 1), ended.said
    assert f"{name}, {where}: a row goes on behind {most:,} bytes" in ended.said
    assert ended.most_bytes < MOST_MEMORY


def arrow(path: Path, kind: str, new: Callable[..., pa.ipc.RecordBatchStreamWriter] = pa.ipc.new_stream) -> None:
    with new(str(path), ZEROS.schema, options=pa.ipc.IpcWriteOptions(compression=kind)) as writer:
        writer.write_table(ZEROS.slice(0, 1))
        writer.write_table(ZEROS)


def views(path: Path) -> None:
    zeros = pa.array(np.zeros(50_000, np.int32))
    offsets, sizes = pa.array([0] * 40, pa.int32()), pa.array([50_000] * 40, pa.int32())
    same = pa.table({"input_ids": pa.ListViewArray.from_arrays(offsets, sizes, zeros)})
    with pa.ipc.new_stream(str(path), same.schema) as writer:
        writer.write_table(same)


def rows(path: Path, compress: Callable[[bytes], bytes]) -> None:
    row = json.dumps({"input_ids": [0] * 50_000}).encode() + b"\n"
    path.write_bytes(compress(row * 30))


GROWING: dict[str, tuple[Callable[[Path], object], str]] = {
    "a.arrow": (lambda path: arrow(path, "lz4"), "rows from 1"),
    "b.arrow": (lambda path: arrow(path, "zstd"), "rows from 1"),
    "c.arrow": (lambda path: arrow(path, "zstd", pa.ipc.new_file), "rows from 1"),
    "views.arrow": (views, "column 'input_ids'"),
    "runs.parquet": (lambda path: pq.write_table(ZEROS, path), "rows 0 to 39"),
    "pages.parquet": (
        lambda path: pq.write_table(ZEROS, path, use_dictionary=False, compression="zstd", data_page_size=1 << 24),
        "rows 0 to 39",
    ),
    "d.jsonl.gz": (lambda path: rows(path, gzip.compress), "a decompression bomb"),
    "e.jsonl.zst": (lambda path: rows(path, zstandard.compress), "a decompression bomb"),
}


@pytest.mark.parametrize("name", GROWING)
def test_what_grows_without_measure(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    make, where = GROWING[name]
    make(tmp_path / name)
    command = ["pack", tmp_path / name, "--output", tmp_path / "out", *FLAGS, "--overlong", "split"]
    told = run(*command, "--dry-run")
    assert told.code == 0, "small as it is, it is read"
    monkeypatch.setattr(growth, "MOST_BYTES", 1 << 22)
    monkeypatch.setattr(growth, "MOST_GROWTH", 30)
    monkeypatch.setattr(growth, "MOST_TEXT_BYTES", 1 << 22)
    ended = run(*command)
    assert ended.code == 3, ended.err
    assert ended.err.count("ERROR") == 1 and "a decompression bomb?" in ended.err
    assert f"{name}, {where}" in ended.err or f"{name}: {where}" in ended.err
    monkeypatch.setattr(growth, "MOST_GROWTH", 1_000_000)
    monkeypatch.setattr(growth, "MOST_TEXT_GROWTH", 1_000_000)
    assert run(*command).code == 0, "what grows less is no bomb"


def test_pages_of_text(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer_dir: Path) -> None:
    for name, is_dictionary in (("plain", False), ("dictionary", True)):
        text = pa.table({"id": ["0", "1"], "text": ["why? " * 200_000, "because"]})
        pq.write_table(text, tmp_path / f"{name}.parquet", use_dictionary=is_dictionary, compression="zstd")
        command = ["tokenize", tmp_path / f"{name}.parquet", "--tokenizer", tokenizer_dir, "--format", "text"]
        monkeypatch.setattr(growth, "MOST_ROW_BYTES", 1 << 19)
        ended = run(*command, "--output", tmp_path / "out")
        assert ended.code == 3, ended.err
        assert f"{name}.parquet, rows 0 to 1, column 'text': a decompression bomb? 1,0" in ended.err
        monkeypatch.setattr(growth, "MOST_ROW_BYTES", 1 << 21)
        path = str(tmp_path / f"{name}.parquet")
        growth.refuse_growing_groups(path, pq.read_metadata(path), ["text"], "a page that is no bomb")


def test_a_shard_that_grows(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl([{"input_ids": [7] * 60}] * 4000, tmp_path / "in.jsonl")
    command = ["pack", tmp_path / "in.jsonl", "--output", tmp_path / "out", *FLAGS, "--compression", "zstd"]
    assert run(*command).code == 0
    assert run("verify", tmp_path / "out").code == 0
    monkeypatch.setattr(growth, "MOST_BYTES", 1 << 16)
    monkeypatch.setattr(growth, "MOST_GROWTH", 2)
    ended = run("verify", tmp_path / "out")
    assert (ended.code, "decompression bomb" in ended.out + ended.err) == (4, True), ended.out + ended.err
