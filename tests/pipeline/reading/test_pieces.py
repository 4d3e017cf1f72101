"""A file is decoded in pieces: the same bytes, rows as the file numbers them, and the same messages."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.format.options import InputOptions
from pipeline.reading.decoding import pieces
from pipeline.reading.decoding.json_lines import counts_before, lines_of, text_blocks
from pipeline.reading.decoding.pieces import pieces_of
from pipeline.reading.files import InputFile
from pipeline.reading.inputs import resolve
from tests.conftest import Run
from tests.pipeline.reading.inputs import BOM, KINDS, json_lines, stream, write
from tests.pipeline.samples import random_rows, table

FLAGS = ["--max-length", 80, "--num-workers", 2]
ROWS = random_rows(90)
CUT = ["parquet row groups", "arrow lz4", "jsonl", "jsonl without last newline", "jsonl with CRLF, BOM and blank lines"]


def cut(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Pieces of so many bytes."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", size)
    monkeypatch.setattr(pieces, "MOST_PIECES", 10**6)


def file_at(path: Path) -> InputFile:
    ((file,),) = (entry.files() for entry in resolve(path, InputOptions()))
    return file


def packed(run: Run, source: Path | str, out: Path) -> dict[str, bytes]:
    """The files of a dataset that a run gives, which `verify` finds to be the source's."""
    ended = run("pack", source, "--output", out, *FLAGS)
    assert ended.code == 0, ended.err
    assert run("verify", out, "--source", source).code == 0
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("kind", CUT)
def test_pieces_give_the_bytes_of_the_whole(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    source = Path(KINDS[kind](ROWS, tmp_path))
    whole = packed(run, source, tmp_path / "whole")
    assert pieces_of(file_at(source), str(source)) == [None]
    cut(monkeypatch, 997)
    assert len(pieces_of(file_at(source), str(source))) > 1
    assert packed(run, source, tmp_path / "cut") == whole


def with_null(rows: list[dict[str, object]], folder: Path) -> Path:
    pq.write_table(table(rows), folder / "in.parquet", row_group_size=7)
    return folder / "in.parquet"


def broken_line(line: bytes) -> Callable[[list[dict[str, object]], Path], Path]:
    """A file with a line that is wrong, after blank ones."""

    def written(rows: list[dict[str, object]], folder: Path) -> Path:
        before, after = json_lines(rows[:33]).replace(b"\n", b"\n \n\n"), json_lines(rows[34:])
        return write(folder / "in.jsonl", BOM + before + line + b"\n" + after)

    return written


BROKEN = {
    "parquet": with_null,
    "arrow": lambda rows, folder: stream(rows, folder / "in.arrow", compression="lz4"),
    "jsonl with a null": lambda rows, folder: write(folder / "in.jsonl", json_lines(rows)),
    "jsonl, no JSON": broken_line(b'{"input_ids": [1'),
    "jsonl, an array": broken_line(b"[1, 2]"),
    "jsonl, a text": broken_line(b'{"input_ids": "1 2"}'),
    "jsonl, a new column": broken_line(b'{"input_ids": [1], "labels": [1], "attention_mask": [1]}'),
    "jsonl, a long line": broken_line(b'{"input_ids": [' + b"7, " * 3000 + b"7]}"),
}


def errors_in(told: str) -> list[str]:
    """The lines but those that tell how much of the disk is free."""
    return [line for line in told.splitlines() if "are free" not in line]


@pytest.mark.parametrize("kind", BROKEN)
def test_pieces_give_the_message_of_the_whole(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    rows: list[dict[str, object]] = [*ROWS]
    rows[73 if kind == "arrow" else 33] = {"input_ids": [1, None, 2], "labels": [1, 2, 3]}
    source = BROKEN[kind](rows, tmp_path)
    monkeypatch.setattr("pipeline.reading.decoding.growth.MOST_ROW_BYTES", 6000)
    monkeypatch.setattr("pipeline.reading.decoding.spool.JSON_BYTES", 500)
    whole = run("pack", source, "--output", tmp_path / "out", *FLAGS)
    place = "line 100" if "long" in kind else "row 73" if kind == "arrow" else "row 33"
    assert (whole.code, f"{source.name}, {place}:" in whole.err) == (3, True), whole.err
    cut(monkeypatch, 997)
    assert errors_in(run("pack", source, "--output", tmp_path / "out", *FLAGS).err) == errors_in(whole.err) != []
    assert not [path.name for path in tmp_path.iterdir() if "staging" in path.name], "no task goes on behind its end"


LINES = [b'{"a":1}', b"", b" \r", b'{"b":"' + b"x" * 40 + b'"}\r', b'{"c":2}', b"[1]", b'{"d":3}']


@pytest.mark.parametrize("text", [b"\n".join(LINES), BOM + b"\n".join([*LINES, b""]), b"\n\n" + b"\n\n\n".join(LINES)])
def test_each_line_is_in_one_piece(tmp_path: Path, text: bytes) -> None:
    file = file_at(write(tmp_path / "in.jsonl", text))
    expected = [line for line in text.removeprefix(BOM).split(b"\n") if line.strip()]
    for number in range(1, 17):
        edges = [len(text) * i // number for i in range(number + 1)]
        found: list[bytes] = []
        for start, stop in itertools.pairwise(edges):
            assert counts_before(file, file.path, start)[0] == len(found)
            found += [
                line for block in text_blocks(file, file.path, 16, range(start, stop)) for line in lines_of(block)
            ]
        assert found == expected, number


def test_what_has_no_places_to_begin_at_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, 1)
    values = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 50), pa.array(["a", "b"]))
    worded = pa.table({"input_ids": pa.array([[1, 2]] * 100, pa.list_(pa.int32())), "source": values})
    wholes = [KINDS[kind](ROWS, tmp_path) for kind in ("jsonl.gz", "jsonl.zst", "json array")]
    wholes.append(write(tmp_path / "in.json", BOM + b" [" + json.dumps(ROWS[0]).encode() + b"]"))
    for source in (*map(Path, wholes), stream([], tmp_path / "in.arrow", worded)):
        assert pieces_of(file_at(source), str(source)) == [None], source
