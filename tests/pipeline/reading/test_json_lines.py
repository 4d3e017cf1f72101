"""What a line holds is what Python's own reader of JSON makes of it."""

from __future__ import annotations

import json

import pytest

from pipeline.reading.decoding.json_lines import parse_line

NUMBERS = ["0", "-0", "-0.0", "1e5", "0.1", "5e-324", "1e400", "NaN", "-Infinity", str(2**64), str(-(2**70)), "1" * 40]
TEXTS = [r'"\ud83d\ude00"', r'"\ud800"', '"\u2028\x7f"', r'"\/"', '"\ufeff"']
WRONG = ["01", "1.", ".5", '"\t"', "1} x", "[" * 100_000 + "]" * 100_000, "'a'", ""]


@pytest.mark.parametrize("value", NUMBERS + TEXTS)
@pytest.mark.parametrize("line", ['{"a":%s}', ' {"a":1,"a":[{"b":%s}]}\r', '\ufeff{"a":%s}'])
def test_a_line_is_read_as_python_reads_it(line: str, value: str) -> None:
    row = (line % value).encode()
    assert repr(parse_line(row)) == repr(json.loads(row))


@pytest.mark.parametrize("value", WRONG)
def test_a_line_that_is_no_json_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="not valid JSON"):
        parse_line(f'{{"a":{value}}}'.encode())


def test_a_line_in_another_encoding_is_refused() -> None:
    with pytest.raises(ValueError, match="byte 0xff at position 6"):
        parse_line(b'{"a":"\xff"}')
