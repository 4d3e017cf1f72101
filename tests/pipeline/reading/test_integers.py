"""Compiled code reads of lines of JSON what the general parser reads, or leaves them to it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.base.errors import DataError
from pipeline.reading.columns import Selection
from pipeline.reading.decoding import batches
from pipeline.reading.decoding.batches import json_batches, json_columns
from pipeline.reading.text.integers import integer_lists

FIRST = b'{"input_ids": [1], "labels": [-100]}\n'
PLAIN = [
    FIRST,
    b"\n \r\n" + FIRST[:-1],
    b'{"input_ids":[],"labels":[ ]}\r\n\t{ "labels" : [ 0 , -1 ] , "input_ids" : [ 2 , 999999999999999999 ] } \n',
    b'{"labels": null, "input_ids": [1]}\n{"input_ids": [1]}\n{}\n',
    '{"text": "é \\" \\\\ \\n [{]} , :", "input_ids": [12]}\n'.encode(),
    b'{"a": -0.5e-05, "b": [1, "x", null, true, 1.5, -2E+7], "c": [], "d": false, "": 0, "input_ids": [3]}\n',
    b'{"a": 1, "a": "b", "input_ids": [3]}\n',
]
LEFT = [
    b'\xef\xbb\xbf{"input_ids": [1]}\n',
    b'{"input_ids": [9223372036854775807]}\n',
    b'{"input_ids": [-0]}\n',
    b'{"input_ids": [1], "chat": {"a": [1]}}\n',
    b'{"input_ids": [1], "chat": [[1]]}\n',
    b'{"input_ids": [1], "text": "\\u00e9"}\n',
    b'{"input\\u005fids": [1]}\n',
    b'{"input_ids": [1], "attention_mask": null}\n',
    b'{"input_ids": [1], "a": NaN}\n',
]
VALUES = ["[1.0]", "[true]", "[1e3]", '"1"', "1", "[[1]]", "[01]", "[1,]", "[,1]", "[1 2]", "[1", "[-]", f"[{2**63}]"]
RESTS = ["", ",}", "} x", ' "a": 1}', ', "a": 01}', ', "a": 1.}', ", a: 1}", ', "attention_mask": [1]}']
OTHERS = ["nul", '"\t"', '"\\x"', "[1,]", "+1", "1e", "[", ""]
WRONG = [
    *(f'{{"input_ids": {value}}}\n'.encode() for value in VALUES),
    *(f'{{"input_ids": [1]{rest}\n'.encode() for rest in RESTS),
    *(f'{{"input_ids": [1], "a": {value}}}\n'.encode() for value in OTHERS),
    b"[1, 2]\n",
]
PARTS = [*"{}[],:10 \n", "input_ids", "labels", '"a"', "-20", "null", "1.5", '"\\"']


def read(block: bytes) -> list[dict[str, Any]] | str:
    """What becomes of lines behind a plain one, in the end."""
    columns = json_columns(FIRST, Selection(), "in.jsonl")
    try:
        return [row for batch in json_batches(iter([FIRST + block]), columns, "in.jsonl") for row in batch.to_pylist()]
    except DataError as error:
        return str(error)


def plainly(block: bytes) -> pa.RecordBatch | None:
    columns = json_columns(FIRST, Selection(), "in.jsonl")
    return integer_lists(FIRST + block, columns.schema.names, columns.absent)


@pytest.fixture
def general(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read by compiled code."""
    monkeypatch.setattr(batches, "integer_lists", lambda *_: None)


@pytest.mark.usefixtures("general")
def test_compiled_code_reads_what_the_general_parser_reads() -> None:
    draws = np.random.default_rng(0)
    mixed = [b'{"input_ids": [1], "a": "\xff"}\n']
    for _ in range(800):
        parts = [PARTS[i].encode() for i in draws.integers(0, len(PARTS), draws.integers(1, 4))]
        line = b'{"input_ids": [1, 2], "a": 1, "labels": [-100, 3]}\n'
        for part in parts:
            at = int(draws.integers(0, len(line)))
            line = line[:at] + part + line[at + int(draws.integers(0, 3)) :]
        mixed.append(line)
    num_plain = 0
    for block in (*PLAIN, *LEFT, *WRONG, *mixed):
        found = plainly(block)
        if found is not None:
            num_plain += 1
            assert found.to_pylist() == read(block), block
    assert num_plain > 50, "some of them are sound"


@pytest.mark.parametrize("block", PLAIN)
def test_what_is_usual_is_read(block: bytes) -> None:
    found = plainly(block)
    assert found is not None
    rows = [json.loads(line) for line in (FIRST + block).split(b"\n") if line.strip()]
    assert found.to_pylist() == [{name: row.get(name) for name in ("input_ids", "labels")} for row in rows]


@pytest.mark.parametrize("block", LEFT + WRONG)
def test_what_is_unusual_is_left_to_the_general_parser(block: bytes) -> None:
    assert plainly(block) is None
    assert isinstance(read(block), list if block in LEFT else str)
