"""Every damaged or unfit input is told in one message, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest

from tests.conftest import Run, left_behind
from tests.pipeline.reading.inputs import (
    KINDS,
    LONGEST,
    ROWS,
    Rows,
    as_arrow_file,
    as_parquet,
    json_lines,
    stream,
    write,
)
from tests.pipeline.samples import save, table


def bad_lists(kind: pa.DataType, values: list[Any]) -> Callable[[Path], Path]:
    return lambda folder: stream([], folder / "x.arrow", pa.table({"input_ids": pa.array(values, kind)}))


def cut_off(source: Callable[[Rows, Path], Path | str], keep: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = Path(source(ROWS, folder))
        content = path.read_bytes()
        return write(path, content[: int(len(content) * keep)])

    return make


def cut_at_a_batch(folder: Path) -> Path:
    path = stream(ROWS, folder / "x.arrow")
    with pa.memory_map(str(path)) as file:
        pa.ipc.read_message(file)
        pa.ipc.read_message(file)
        end = file.tell()
    return write(path, path.read_bytes()[:end])


def with_row(row: dict[str, Any], kind: pa.DataType = pa.int64()) -> Callable[[Path], Path]:  # noqa: B008
    rows: Rows = [{"input_ids": [1, 2], "labels": [1, 2]}, row]
    return lambda folder: save(rows, folder / "x", kind)


def offsets_of(offsets: list[int]) -> Callable[[Path], Path]:
    """Four values in three lists, whose offsets in the file are then replaced."""

    def make(folder: Path) -> Path:
        path = stream([], folder / "x.arrow", table([{"input_ids": [1, 2]}, {"input_ids": [3]}, {"input_ids": [4]}]))
        sound, damaged = (np.array(numbers, np.int32).tobytes() for numbers in ([0, 2, 3, 4], offsets))
        content = path.read_bytes()
        assert content.count(sound) == 1
        return write(path, content.replace(sound, damaged))

    return make


def empty_directory(folder: Path) -> Path:
    (folder / "x").mkdir()
    return folder / "x"


def without_its_shard(folder: Path) -> Path:
    next(save(ROWS, folder / "x").glob("*.arrow")).unlink()
    return folder / "x"


BAD: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "missing path": (lambda folder: folder / "nowhere.parquet", ["nowhere.parquet", "no such file"]),
    "missing directory": (lambda folder: folder / "nowhere", ["nowhere", "no such file or directory"]),
    "nothing matches": (lambda folder: f"{folder}/*.parquet", ["*.parquet", "nothing matches"]),
    "empty directory": (empty_directory, ["the directory is empty"]),
    "not a dataset": (lambda folder: write(folder / "notes.txt", b"hello").parent, ["not a dataset"]),
    "folder of files": (lambda folder: write(folder / "a.jsonl", b"{}").parent, ["not a dataset", "*.jsonl'"]),
    "unknown type": (lambda folder: write(folder / "x.csv", b"a,b"), ["x.csv", "unknown file type"]),
    "empty arrow file": (lambda folder: write(folder / "x.arrow", b""), ["x.arrow", "truncated"]),
    "truncated arrow stream": (cut_off(KINDS["arrow stream"], 0.7), ["x.arrow", "truncated"]),
    "truncated arrow file": (cut_off(as_arrow_file, 0.7), ["x.arrow", "truncated"]),
    "arrow cut at a batch": (cut_at_a_batch, ["x.arrow", "no end mark"]),
    "truncated parquet": (cut_off(as_parquet, 0.7), ["x.parquet", "truncated"]),
    "truncated gz": (cut_off(KINDS["jsonl.gz"], 0.7), ["x.jsonl.gz", "truncated"]),
    "truncated zst": (cut_off(KINDS["jsonl.zst"], 0.7), ["x.jsonl.zst", "truncated"]),
    "truncated jsonl": (lambda folder: write(folder / "x.jsonl", json_lines(ROWS)[:-9]), ["row 299", "not valid JSON"]),
    "truncated json array": (
        lambda folder: write(folder / "x.json", json.dumps(ROWS).encode()[:-9]),
        ["x.json", "truncated"],
    ),
    "json of no objects": (lambda folder: write(folder / "x.jsonl", b"[1]\n[2]\n"), ["x.jsonl"]),
    "json column of text": (
        lambda folder: write(folder / "x.jsonl", b'{"input_ids": [1]}\n{"input_ids": "two"}\n'),
        ["row 1", "'input_ids'", "list"],
    ),
    "json float": (
        lambda folder: write(folder / "x.jsonl", b'{"input_ids": [1]}\n{"input_ids": [2, 2.5]}\n'),
        ["row 1", "'input_ids'", "2.5"],
    ),
    "json row without the column": (
        lambda folder: write(folder / "x.jsonl", b'{"input_ids": [1]}\n{"tokens": [2]}\n'),
        ["row 1", "'input_ids'", "null"],
    ),
    "json labels that appear later": (
        lambda folder: write(folder / "x.jsonl", b'{"input_ids": [1]}\n{"input_ids": [2], "labels": [2]}\n'),
        ["row 1", "'labels'", "row 0 lacks"],
    ),
    "column missing": (lambda folder: save([{"ids": [1]}], folder / "x"), ["'input_ids'", "the columns are: ids"]),
    "packed already": (
        lambda folder: save(
            [{"input_ids": [1, 2], "labels": [1, 2], "position_ids": [0, 0], "seq_lengths": [1, 1]}], folder / "x"
        ),
        ["packed dataset", "where its samples begin"],
    ),
    "raw text": (
        lambda folder: write(folder / "x.jsonl", b'{"text": "hello"}\n'),
        ["'input_ids'", "text", "--tokenizer PATH_OR_ID"],
    ),
    "floats": (bad_lists(pa.list_(pa.float32()), [[1.5]]), ["'input_ids'", "list<item: float>", "integers"]),
    "strings": (bad_lists(pa.list_(pa.string()), [["a"]]), ["'input_ids'", "string"]),
    "no lists": (bad_lists(pa.int64(), [1]), ["'input_ids'", "int64"]),
    "nested lists": (bad_lists(pa.list_(pa.list_(pa.int64())), [[[1]]]), ["'input_ids'", "list<item: list"]),
    "null row": (bad_lists(pa.list_(pa.int64()), [[1], None]), ["row 1", "'input_ids'", "null"]),
    "null value": (bad_lists(pa.list_(pa.int64()), [[1], [], [2, None]]), ["row 2", "'input_ids'", "null"]),
    "negative id": (bad_lists(pa.list_(pa.int32()), [[1], [2, -3]]), ["row 1", "'input_ids'", "-3", "position 1"]),
    "id of 2^31": (bad_lists(pa.list_(pa.int64()), [[1], [2**31]]), ["row 1", "'input_ids'", "2147483648"]),
    "unsigned id of 2^31": (bad_lists(pa.list_(pa.uint32()), [[2**31]]), ["row 0", "2147483648"]),
    "unsigned id of 2^63": (bad_lists(pa.list_(pa.uint64()), [[2**63]]), ["row 0", "9223372036854775808"]),
    "unsigned label of 2^32 - 100": (
        with_row({"input_ids": [1], "labels": [2**32 - 100]}, pa.uint32()),
        ["row 1", "'labels'", "4294967196"],
    ),
    "unsigned label of 2^64 - 100": (
        with_row({"input_ids": [1], "labels": [2**64 - 100]}, pa.uint64()),
        ["row 1", "'labels'", "18446744073709551516"],
    ),
    "offsets that fall": (offsets_of([0, 4, 3, 4]), ["x.arrow", "truncated"]),
    "offsets that begin below": (offsets_of([-5, 2, 3, 4]), ["x.arrow", "truncated"]),
    "offsets beyond the values": (offsets_of([0, 2, 3, 9]), ["x.arrow", "truncated"]),
    "gz of nothing": (lambda folder: write(folder / "x.jsonl.gz", b""), ["x.jsonl.gz", "truncated"]),
    "zst of nothing": (lambda folder: write(folder / "x.jsonl.zst", b""), ["x.jsonl.zst", "truncated"]),
    "json after the array": (
        lambda folder: write(folder / "x.json", b'[{"input_ids": [1]}] [{"input_ids": [2]}]'),
        ["x.json", "after the end"],
    ),
    "json nested too deeply": (lambda folder: write(folder / "x.jsonl", b"[" * 100_000), ["x.jsonl", "nested"]),
    "json row nested too deeply": (
        lambda folder: write(folder / "x.jsonl", b'{"input_ids": ' + b"[" * 100_000 + b"}"),
        ["row 0", "not valid JSON"],
    ),
    "labels too short": (with_row({"input_ids": [1, 2], "labels": [1]}), ["row 1", "'labels'", "1 values", "has 2"]),
    "label of -5": (with_row({"input_ids": [1, 2], "labels": [-100, -5]}), ["row 1", "'labels'", "-5"]),
    "label of 2^31": (with_row({"input_ids": [1, 2], "labels": [-100, 2**31]}), ["row 1", "'labels'", "2147483648"]),
    "mask too long": (
        lambda folder: save([{"input_ids": [1], "attention_mask": [1, 1]}], folder / "x"),
        ["row 0", "'attention_mask'", "2 values"],
    ),
    "labels and a mask": (
        lambda folder: save([{"input_ids": [1], "labels": [1], "loss_mask": [1]}], folder / "x"),
        ["'labels'", "'loss_mask'", "--column labels=labels"],
    ),
    "too long": (with_row({"input_ids": [1] * 90, "labels": [1] * 90}), ["1 sample;", "90 tokens", "row 1", "split"]),
    "shard missing": (without_its_shard, ["listed in state.json is missing"]),
    "state.json damaged": (
        lambda folder: write(save(ROWS, folder / "x") / "state.json", b"{").parent,
        ["state.json", "not valid JSON"],
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_told_and_leaves_nothing(run: Run, tmp_path: Path, what: str) -> None:
    make, told = BAD[what]
    source = make(tmp_path)
    before = left_behind(tmp_path)
    ended = run("pack", source, "--output", tmp_path / "new" / "out", "--max-length", LONGEST)
    assert ended.code == 3, ended.err
    assert ended.out == ""
    said = [line for line in ended.err.splitlines() if not line.startswith("INFO: 1 input file to be decoded once")]
    assert len(said) == 1
    for word in told:
        assert word in ended.err
    assert left_behind(tmp_path) == before


def test_mixed_splits_are_refused(run: Run, tmp_path: Path) -> None:
    save(ROWS, tmp_path / "a")
    datasets.DatasetDict({"train": datasets.Dataset(table(ROWS))}).save_to_disk(str(tmp_path / "b"))
    ended = run("pack", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "out", "--max-length", LONGEST)
    assert ended.code == 3
    assert "different splits" in ended.err
    ended = run("pack", tmp_path / "b", "--output", tmp_path / "out", "--max-length", LONGEST, "--split", "tset")
    assert ended.code == 3
    assert "'tset'" in ended.err
    assert "train" in ended.err


def test_a_hub_id_that_cannot_be_reached(run: Run, tmp_path: Path) -> None:
    ended = run("pack", "nobody/nothing", "--output", tmp_path / "out", "--max-length", LONGEST)
    assert ended.code == 3
    assert "nobody/nothing" in ended.err
    assert left_behind(tmp_path) == []
