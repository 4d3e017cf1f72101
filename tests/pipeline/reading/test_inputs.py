"""Every kind of input gives the same packs."""

from __future__ import annotations

from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import Ended, Run
from tests.pipeline.oracle import assert_packed, expect
from tests.pipeline.reading.inputs import KINDS, LONGEST, ROWS, Rows, as_fixed_size, json_lines, stream, write
from tests.pipeline.samples import save, table


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


def test_a_cache_that_cannot_be_written_is_said_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.reading.cache._SETTLED_SECONDS", -1.0)
    sources = [write(tmp_path / f"{name}.jsonl", json_lines(ROWS)) for name in "ab"]
    flags = ["--max-length", LONGEST, "--cache-dir", sources[0] / "cache"]
    ended = run("pack", *sources, "--output", tmp_path / "out", *flags)
    assert ended.code == 0, ended.err
    assert ended.err.count("not remembered") == 1


@pytest.mark.parametrize("kind", ["arrow", "parquet", "jsonl"])
def test_columns_beside_the_tokens_are_told_or_refused(run: Run, tmp_path: Path, kind: str) -> None:
    def packed(columns: dict[str, pa.Array]) -> Ended:
        content = pa.table({"input_ids": [[1, 2], [3, 4, 5], [6]]} | columns)
        source = tmp_path / f"x.{kind}"
        if kind == "arrow":
            stream([], source, content)
        elif kind == "parquet":
            pq.write_table(content, source)
        else:
            write(source, json_lines(content.to_pylist()))
        return run("pack", source, "--output", tmp_path / "out", "--max-length", 8, "--overwrite")

    nothing = pa.nulls(3, pa.list_(pa.float32()))
    told = packed({"topic": pa.array(["a", "", "b"]), "pixel_values": nothing, "loss_weights": nothing})
    assert told.code == 0
    assert "columns that are not read: topic (1 file)" in told.err
    refused = packed({"loss_weights": pa.array([None, [0.5, 1.0, 1.0], None])})
    assert refused.code == 3
    assert f"x.{kind}, row 1: column 'loss_weights' has content" in refused.err
    pictures = packed({"pixel_values": pa.array([[], [], [0.5]], pa.list_(pa.float32()))})
    assert pictures.code == 3
    assert f"x.{kind}, row 2: column 'pixel_values' has content" in pictures.err
