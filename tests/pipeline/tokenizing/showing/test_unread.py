"""Columns that are not read are named with the rows in which they have content, whatever the file's format."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.reading.decoding.unread import light_parts, rows_with_content
from pipeline.tokenizing.tally import OTHERS, RowTally, warn_of_rows
from tests.conftest import Run
from tests.pipeline.chats import chat
from tests.pipeline.tokenizing.conftest import Lines, manifest_of

VALUES: dict[str, list[Any]] = {
    "id": [0, 1, None],
    "source": ["a", "", None],
    "score": [0.0, float("inf"), None],
    "kept": [False, True, None],
    "tags": [["x"], [], None, [""]],
    "meta": [{"a": None, "b": 1}, {"a": 1, "b": None}, None],
    "never": [None, "", None],
}


def rows(count: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows of which each column's values are drawn, and in how many it has content."""
    draw = random.Random(0)
    found, wanted = [], dict.fromkeys(VALUES, 0)
    for number in range(count):
        row: dict[str, Any] = {"messages": chat(f"q{number}", "a" * (number % 300))}
        row["messages"][1]["content"] += "b"
        for name, values in VALUES.items():
            row[name] = draw.choice(values)
            is_there = row[name] not in (None, "", [])
            wanted[name] += is_there
        found.append(row)
    return found, {name: number for name, number in wanted.items() if number}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_every_file_format_counts_the_same(
    kind: str, run: Run, tmp_path: Path, flags: list[object], lines: Lines
) -> None:
    content, wanted = rows(1500)
    source = tmp_path / f"rows.{kind}"
    table = pa.Table.from_pylist(content)
    if kind == "jsonl":  # the first row has no other column, and none that is empty has to be there
        content = [{"messages": chat("first", "row")}, *content]
        lines([{k: v for k, v in row.items() if v is not None or k == "id"} for row in content], source.name)
    elif kind == "arrow":
        with pa.ipc.new_stream(str(source), table.schema) as writer:
            writer.write_table(table, max_chunksize=333)
    else:
        pq.write_table(table, source, row_group_size=500)
    ended = run("tokenize", source, "--output", tmp_path / "o", *flags, "--num-workers", 2)
    assert ended.code == 0, ended.err
    assert manifest_of(tmp_path / "o")["counts"]["unread"] == wanted
    (told,) = [line for line in ended.err.splitlines() if "columns with content that is not read: " in line]
    assert f"source ({wanted['source']:,} rows)" in told and "messages" not in told
    if kind == "jsonl":
        packed = run("pack", source, "--output", tmp_path / "p", *flags, "--max-length", 4096)
        assert f"source ({wanted['source']:,} rows)" in packed.err


def test_heavy_columns_of_parquet_are_not_decoded(run: Run, tmp_path: Path, flags: list[object]) -> None:
    """Of pictures in lists the paths are read, of large bytes nothing but the file's own count of nulls."""
    large = random.Random(0).randbytes(1 << 17)
    images = [[{"bytes": large, "path": "a"}], [], None, [{"bytes": large, "path": None}]]
    content = [
        {"messages": chat("a", "b"), "pictures": pictures, "sound": sound}
        for pictures, sound in zip(images, [large, None, large, large], strict=True)
    ]
    source = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(content), source, row_group_size=2)
    with pq.ParquetFile(source) as file:
        assert light_parts(file.metadata, ["messages"]) == (["pictures.list.element.path"], {"sound": 3})
    assert run("tokenize", source, "--output", tmp_path / "o", *flags).code == 0
    assert manifest_of(tmp_path / "o")["counts"]["unread"] == {"pictures": 2, "sound": 3}


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (pa.array(["", "a", None, "b"]), 2),
        (pa.array(["", "a", None, "b"], pa.large_string()), 2),
        (pa.array(["", "a", None, "b"], pa.string_view()), 2),
        (pa.array([b"", b"a", None]), 1),
        (pa.array(["", "a", None, "a"]).dictionary_encode(), 2),
        (pa.array([[], [1], None]), 1),
        (pa.array([[], [1], None], pa.list_view(pa.int64())), 1),
        (pa.array([[1], None], pa.list_(pa.int64(), 1)), 1),
        (pa.array([[], [("k", 1)], None], pa.map_(pa.string(), pa.int64())), 1),
        (pa.array([{"a": 1, "b": None}, {"a": None, "b": 1}, {"a": None, "b": None}, None]), 2),
        (pa.array([{}, {}, None], pa.struct([])), 0),
        (pa.array([0, None, 1]), 2),
        (pa.nulls(3), 0),
        (pa.array(["x", "", "a", None, "b"])[1:4], 1),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_content_of_every_type(array: pa.Array, wanted: int) -> None:
    assert rows_with_content(array) == wanted


def test_names_that_the_first_row_lacks(run: Run, tmp_path: Path, lines: Lines, flags: list[object]) -> None:
    """A system_prompt that comes later is read, one beside a system column is no guess."""
    plain: dict[str, Any] = {"messages": chat("a", "b")}
    own = [plain, plain | {"system_prompt": "be brief"}]
    assert run("tokenize", lines(own), "--output", tmp_path / "o", *flags).code == 0
    same = [own[0], {"messages": [{"role": "system", "content": "be brief"}, *chat("a", "b")]}]
    assert run("tokenize", lines(same, "same.jsonl"), "--output", tmp_path / "s", *flags).code == 0
    one, two = (manifest_of(tmp_path / name)["counts"] for name in ("o", "s"))
    assert one == two and one["unread"] == {}
    ended = run("tokenize", lines([own[0], own[1] | {"system": "be long"}]), "--output", tmp_path / "x", *flags)
    assert (ended.code, "row 1: columns 'system' and 'system_prompt' could both be the system" in ended.err) == (
        3,
        True,
    )


def test_keys_beside_what_is_read_inside_a_column(run: Run, tmp_path: Path, lines: Lines, flags: list[object]) -> None:
    inner = {"messages": chat("a", "b"), "source": "x", "none": None}
    source = lines([{"data": inner, "id": 1}, {"data": json.dumps(inner)}])
    ended = run("tokenize", source, "--output", tmp_path / "o", *flags, "--map", "messages=data.messages")
    assert ended.code == 0, ended.err
    assert manifest_of(tmp_path / "o")["counts"]["unread"] == {"data.source": 2, "id": 1}


def test_very_many_columns(caplog: pytest.LogCaptureFixture) -> None:
    whole = RowTally.total(RowTally(unread=RowTally().unread.__class__({f"c{i:04d}": i + 1})) for i in range(1500))
    assert len(whole.unread) == 1001 and whole.unread[OTHERS] == sum(range(1001, 1501))
    with caplog.at_level(logging.WARNING):
        warn_of_rows(whole, are_listed=False)
    (message,) = caplog.messages
    assert "read: c0999 (1,000 rows), c0998 (999 rows)" in message and message.endswith("and 981 columns more")
    whole.unread_keys["refusal"] = 12
    caplog.clear()
    warn_of_rows(RowTally(unread_keys=whole.unread_keys), are_listed=False)
    assert caplog.messages == ["keys of turns that are not read: refusal (12 turns)"]
    assert RowTally.from_json(json.loads(json.dumps(vars(whole)))) == whole


def test_messages_of_trees(run: Run, tmp_path: Path, lines: Lines, flags: list[object]) -> None:
    asked = {"message_id": "1", "parent_id": None, "role": "prompter", "text": "a", "lang": "en"}
    told = {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "b", "lang": "", "model": "m"}
    content = [asked, told]
    pq.write_table(pa.Table.from_pylist(content, pa.schema(dict.fromkeys(told, pa.string()))), tmp_path / "t.parquet")
    for source in (lines(content), tmp_path / "t.parquet"):
        assert run("tokenize", source, "--output", tmp_path / source.suffix[1:], *flags).code == 0
        assert manifest_of(tmp_path / source.suffix[1:])["counts"]["unread"] == {"lang": 1, "model": 1}


def test_keys_of_turns(run: Run, tmp_path: Path, lines: Lines, flags: list[object]) -> None:
    turns = chat("a", "b")
    turns[0]["mood"], turns[1]["refusal"] = "", "no"
    source = lines([{"messages": turns}, {"messages": [*chat("a", "b"), *turns]}])
    ended = run("tokenize", source, "--output", tmp_path / "o", *flags)
    assert ended.code == 0 and "keys of turns that are not read: refusal (2 turns)" in ended.err
    assert manifest_of(tmp_path / "o")["counts"]["unread_keys"] == {"refusal": 2}
