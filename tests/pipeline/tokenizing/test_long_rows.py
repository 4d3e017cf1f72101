"""Long rows: how many bytes one may have, and that those around it do not wait for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.engine import LocalEngine
from pipeline.reading.decoding.raw import BLOCK_BYTES, BLOCK_ROWS, RawBlock, open_raw
from pipeline.reading.files import InputFile
from pipeline.tokenizing.rows.formats import Format
from pipeline.tokenizing.rows.turn_reader import TurnReader
from pipeline.tokenizing.workers import EncodeTask, dealt
from tests.conftest import Run
from tests.pipeline.chats import chat
from tests.pipeline.tokenizing.conftest import manifest_of, same_files

LONG = {"messages": chat("é" * 30, '\u2028 \\" 語' * 9), "seen": "unread " * 99}
LONG_BYTES = 1 + 2 * (1 + len("rolecontent")) + len("userassistant") + 30 * 2 + 9 * len('\u2028 \\" 語'.encode())
ROWS = [{"messages": chat("a", "b"), "seen": "unread " * 99}, LONG, {"messages": chat("c", "d"), "seen": ""}]


def _lines(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def _parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


def _array(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=2, ensure_ascii=False))


def _tree(path: Path) -> None:
    texts = {0: "a", 1: "é" * 200, 2: "c", 3: "d"}
    roles = ("prompter", "assistant")
    rows = [
        {"message_id": str(row), "parent_id": str(row - 1) if row % 2 else None, "role": roles[row % 2], "text": text}
        for row, text in texts.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


FILES: dict[str, tuple[Callable[[Path], None], int, int]] = {
    "rows.jsonl": (_lines, LONG_BYTES, 1),
    "rows.parquet": (_parquet, LONG_BYTES, 1),
    "rows.json": (_array, LONG_BYTES, 1),
    "tree.jsonl": (_tree, len("10assistant") + 400, 2),
}
"""What writes a file, the bytes of its row 1, and how many rows are left out with that."""


@pytest.mark.parametrize("name", FILES)
def test_a_row_may_have_so_many_bytes(run: Run, tmp_path: Path, flags: list[object], name: str) -> None:
    write, size, num_dropped = FILES[name]
    source = tmp_path / name
    write(source)
    command = ["tokenize", source, *flags, "--max-row-bytes"]
    assert run(*command, size, "--output", tmp_path / "within").code == 0
    ended = run(*command, size - 1, "--output", tmp_path / "out")
    assert ended.code == 3 and not (tmp_path / "out").exists()
    assert f"{name}, row 1: it has {size:,} bytes, more than the {size - 1:,} of --max-row-bytes" in ended.err
    assert "--on-error drop" in ended.err
    ended = run(*command, f"{size - 1}B", "--output", tmp_path / "out", "--on-error", "drop")
    assert ended.code == 0 and f"too_large {num_dropped}" in ended.err
    counts = manifest_of(tmp_path / "out")["counts"]
    assert counts["dropped"] == {"too_large": num_dropped}
    assert counts["rows"] == counts["samples"] * (2 if "tree" in name else 1) + num_dropped
    listed = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert {"row": 1, "file_row": 1, "reason": "too_large"}.items() <= listed[-1].items()


def test_packed_without_them_and_verified(run: Run, tmp_path: Path, flags: list[object]) -> None:
    source, out = tmp_path / "rows.parquet", tmp_path / "out"
    _parquet(source)
    limit = ["--max-row-bytes", LONG_BYTES - 1]
    packing = ["pack", source, "--output", out, *flags, "--max-length", 64]
    ended = run(*packing, *limit)
    assert ended.code == 3 and "rows.parquet, row 1: it has" in ended.err
    ended = run(*packing, *limit, "--on-error", "drop", "--json")
    assert ended.code == 0, ended.err
    assert manifest_of(out)["dropped_rows"] == {"too_large": 1}
    assert ended.json["counts"]["samples_in"] == 3 and ended.json["counts"]["samples_packed"] == 2
    assert run("verify", out, "--source", source, *flags).code == 0


def _batches(path: Path, texts: list[str]) -> None:
    table = pa.table({"text": texts})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def _text_lines(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def _groups(path: Path, texts: list[str]) -> None:
    pq.write_table(pa.table({"text": texts}), path)


TAIL = ["short"] * 30_000 + [str(number) * (BLOCK_BYTES // 2) for number in range(10, 22)]


@pytest.mark.parametrize(("kind", "write"), [("json", _text_lines), ("arrow", _batches), ("parquet", _groups)])
def test_blocks_are_bounded_by_bytes_and_rows(
    tmp_path: Path, kind: str, write: Callable[[Path, list[str]], None]
) -> None:
    path = tmp_path / f"x.{kind}"
    write(path, TAIL)
    file = open_raw(InputFile(system=fsspec.filesystem("file"), path=str(path), format=kind), str(path))
    blocks = list(file.blocks(["text"]))
    assert [row["text"] for block in blocks for row in block.rows() if isinstance(row, dict)] == TAIL
    assert max(block.num_rows for block in blocks) < 2 * BLOCK_ROWS
    assert max(block.num_bytes for block in blocks) <= 3 * BLOCK_BYTES
    assert sum(block.num_bytes > BLOCK_BYTES // 2 for block in blocks) >= 4  # so that the tail is work for several


def _task(num_bytes: int) -> EncodeTask:
    format_ = Format(name="text", columns={"text": "text"}, reader=TurnReader())
    return EncodeTask(0, format_, RawBlock(b"x" * num_bytes, 0))


def test_the_others_go_on_while_a_long_row_is_encoded() -> None:
    tasks = [_task(20 * BLOCK_BYTES)] + [_task(BLOCK_BYTES) for _ in range(200)]
    others = threading.Semaphore(0)
    read: list[EncodeTask] = []

    def encode(task: EncodeTask) -> Any:
        if task is tasks[0]:
            return sum(others.acquire(timeout=20) for _ in range(50))
        others.release()
        return task.block.num_bytes

    def reading() -> Any:
        for task in tasks:
            read.append(task)
            yield task

    with LocalEngine(2) as engine:
        found: Iterator[tuple[EncodeTask, Any]] = dealt(engine, encode, reading())
        first, result = next(found)
        assert first is tasks[0] and result == 50, "those behind it were done meanwhile"
        assert len(read) <= 1 + 4 * 20 + 1, "and no more were read than the bytes of a long row allow"
        assert [task for task, _ in found] == tasks[1:]


def test_a_tail_of_long_rows_gives_the_same_bytes(run: Run, tmp_path: Path, flags: list[object]) -> None:
    source = tmp_path / "x.arrow"
    drawn = np.random.default_rng(0).integers(ord("a"), ord("z"), (8, 60_000), np.uint8)
    _batches(source, ["a short one"] * 2000 + [bytes(row).decode() for row in drawn])
    for number in (1, 2, 3):
        run("tokenize", source, "--output", tmp_path / str(number), *flags[:2], "--num-workers", number)
    assert same_files(tmp_path / "1", tmp_path / "2") and same_files(tmp_path / "1", tmp_path / "3")
    assert manifest_of(tmp_path / "1")["counts"]["samples"] == 2008
