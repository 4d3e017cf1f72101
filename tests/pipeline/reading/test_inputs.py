"""Every kind of input gives the same packs, and every damaged one is told and leaves nothing behind."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.conftest import Run, left_behind
from tests.pipeline.oracle import assert_packed, expect
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


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_input(run: Run, tmp_path: Path, kind: str) -> None:
    source = KINDS[kind](ROWS, tmp_path)
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", LONGEST, "--json")
    assert ended.code == 0, ended.err
    assert_packed(tmp_path / "out", expect(ROWS, LONGEST), ended.json)
    assert run("verify", tmp_path / "out", "--source", source).code == 0


def test_a_hub_dataset_keeps_its_splits(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub is out of reach here; `load_dataset` reads the same layout from a folder of the same relative name."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    for split, rows in {"train": ROWS[:200], "test": ROWS[200:]}.items():
        (tmp_path / "org" / "name").mkdir(parents=True, exist_ok=True)
        pq.write_table(table(rows), tmp_path / "org" / "name" / f"{split}-00000-of-00001.parquet")
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *more, **also: load(str(tmp_path / name), *more, **also))
    ended = run("pack", "org/name", "--output", tmp_path / "out", "--max-length", LONGEST, "--json")
    assert ended.code == 0, ended.err
    assert_packed(tmp_path / "out" / "train", expect(ROWS[:200], LONGEST), ended.json["splits"]["train"])


def test_fixed_size_lists(run: Run, tmp_path: Path) -> None:
    rows = [{"input_ids": [i, i + 1, i + 2]} for i in range(100)]
    ended = run("pack", as_fixed_size(rows, tmp_path), "--output", tmp_path / "out", "--max-length", 8, "--json")
    assert_packed(tmp_path / "out", expect(rows, 8), ended.json)


def test_several_inputs_are_numbered_in_the_order_given(run: Run, tmp_path: Path) -> None:
    first, second = ROWS[:40], [{"input_ids": [1, 2, 3]}] * 10
    inputs = [save(second, tmp_path / "b", pa.int64()), write(tmp_path / "a.jsonl", json_lines(first))]
    ended = run("pack", *inputs, "--output", tmp_path / "out", "--max-length", LONGEST, "--json")
    assert_packed(tmp_path / "out", expect([*second, *first], LONGEST), ended.json)
    assert run("verify", tmp_path / "out", "--source", inputs[0], "--source", inputs[1]).code == 0
    assert run("verify", tmp_path / "out", "--source", inputs[1], "--source", inputs[0]).code == 4


@pytest.mark.parametrize("kind", [pa.bool_(), pa.int8(), pa.uint8(), pa.int64()])
@pytest.mark.parametrize("role", ["completion_mask", "assistant_masks", "loss_mask"])
def test_masks_of_any_type(run: Run, tmp_path: Path, kind: pa.DataType, role: str) -> None:
    rows = [{"input_ids": row["input_ids"], role: [int(t != -100) for t in row["labels"]]} for row in ROWS]
    columns = {"input_ids": table(rows)["input_ids"], role: pa.array([r[role] for r in rows], pa.list_(pa.int8()))}
    columns[role] = columns[role].cast(pa.list_(kind))
    source = stream(rows, tmp_path / "x.arrow", pa.table(columns))
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", LONGEST, "--json")
    assert ended.code == 0, ended.err
    assert_packed(tmp_path / "out", expect(rows, LONGEST), ended.json)


def test_a_json_mask_that_is_empty_in_the_first_row(run: Run, tmp_path: Path) -> None:
    rows: Rows = [{"input_ids": [], "loss_mask": []}, {"input_ids": [1, 2, 3], "loss_mask": [False, True, True]}]
    source = write(tmp_path / "x.jsonl", json_lines(rows))
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 8, "--json")
    assert_packed(tmp_path / "out", expect(rows, 8), ended.json)


@pytest.mark.parametrize("kind", ["parquet", "arrow lz4", "jsonl", "saved"])
def test_no_rows_under_other_names(run: Run, tmp_path: Path, kind: str) -> None:
    rows = [{"tokens": [1], "goals": [1]}]
    source = KINDS[kind](rows, tmp_path)
    empty = table(rows).slice(0, 0)
    if kind == "parquet":
        pq.write_table(empty, source)
    elif kind == "jsonl":
        write(Path(source), b"\n\n")
    elif kind == "saved":
        source = tmp_path / "none"
        datasets.Dataset(empty).save_to_disk(str(source))
    else:
        stream([], Path(source), empty, "lz4")
    flags = ["--column", "input_ids=tokens", "--column", "loss_mask=goals"]
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 8, *flags, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["packs"] == 0
    assert run("verify", tmp_path / "out", "--source", source).code == 0


def test_renamed_columns(run: Run, tmp_path: Path) -> None:
    rows = [{"tokens": row["input_ids"], "goals": row["labels"], "labels": row["input_ids"]} for row in ROWS]
    source = save(rows, tmp_path / "in")
    flags = ["--column", "input_ids=tokens", "--column", "labels=goals"]
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", LONGEST, *flags, "--json")
    assert_packed(tmp_path / "out", expect(ROWS, LONGEST), ended.json)
    assert run("verify", tmp_path / "out", "--source", source).code == 0


def test_a_row_of_two_million_tokens_in_json(run: Run, tmp_path: Path) -> None:
    rows = [{"input_ids": [7] * 3}, {"input_ids": [123456789] * 2_000_000}]
    source = write(tmp_path / "x.jsonl", json_lines(rows))
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 2_000_000, "--json")
    assert ended.json["counts"]["tokens_packed"] == 2_000_003


def bad_lists(kind: pa.DataType, values: list[Any]) -> Callable[[Path], Path]:
    return lambda folder: stream([], folder / "x.arrow", pa.table({"input_ids": pa.array(values, kind)}))


def cut_off(source: Callable[[Rows, Path], Path], keep: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = source(ROWS, folder)
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


BAD: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "missing path": (lambda folder: folder / "nowhere.parquet", ["nowhere.parquet", "no such file"]),
    "missing directory": (lambda folder: folder / "nowhere", ["nowhere", "no such file or directory"]),
    "nothing matches": (lambda folder: f"{folder}/*.parquet", ["*.parquet", "nothing matches"]),
    "empty directory": (lambda folder: (folder / "x").mkdir() or folder / "x", ["the directory is empty"]),
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
    "shard missing": (
        lambda folder: next(save(ROWS, folder / "x").glob("*.arrow")).unlink() or folder / "x",
        ["listed in state.json is missing"],
    ),
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
