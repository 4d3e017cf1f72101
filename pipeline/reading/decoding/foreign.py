"""What a file is in truth, where it is not what its name says: pointers, web pages, archives, other encodings.

Only the first bytes are looked at. What is not recognised is left to the decoders, whose messages tell the row.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from pipeline.base.errors import DataError
from pipeline.reading.files import InputFile, permitted
from pipeline.reading.remote.ranges import Place, head_of

_HEAD_BYTES = 1 << 12
_OBJECT_BYTES = 1 << 16  # of a JSON object over several lines, to tell it from a broken line

_MADE_FROM = {"json": "JSON text", "parquet": "parquet", "arrow": "Arrow", "gzip": "gzip", "zstd": "Zstandard"}
"""What files hold, in words: by format, or by compression where there is one."""

_ENDS = {"gzip": ".gz", "zstd": ".zst"}


class _Kind(NamedTuple):
    """Something a file can turn out to be."""

    what: str
    way_out: str
    is_right_for: str = ""
    """The format or compression that it is no surprise for."""


_PACKED = "decompress it, or, if it holds JSON, let its name end in {}"
_LFS = _Kind("a Git LFS pointer, which stands for the data", "fetch the data with 'git lfs pull'")
_ANNEX = _Kind("a git-annex pointer, which stands for the data", "fetch the data with 'git annex get'")
_ARCHIVE = "unpack it, and name the files inside"
_CONVERT = "write its rows as .jsonl or .parquet"
_STARTS = (
    (b"version https://git-lfs.github.com/spec/", _LFS),
    (b"version https://hawser.github.com/spec/", _LFS),
    (b"/annex/objects/", _ANNEX),
    (b"\x1f\x8b", _Kind("compressed with gzip", _PACKED.format(".jsonl.gz"), "gzip")),
    (b"\x28\xb5\x2f\xfd", _Kind("compressed with Zstandard", _PACKED.format(".jsonl.zst"), "zstd")),
    (b"BZh", _Kind("compressed with bzip2", "decompress it with bunzip2")),
    (b"\xfd7zXZ\x00", _Kind("compressed with xz", "decompress it with unxz")),
    (b"\x04\x22\x4d\x18", _Kind("compressed with lz4", "decompress it with unlz4")),
    (b"PK\x03\x04", _Kind("a zip archive", _ARCHIVE)),
    (b"PK\x05\x06", _Kind("a zip archive without files", _ARCHIVE)),
    (b"7z\xbc\xaf\x27\x1c", _Kind("a 7z archive", _ARCHIVE)),
    (b"PAR1", _Kind("parquet", "let its name end in .parquet", "parquet")),
    (b"PARE", _Kind("encrypted parquet", "decrypt it first")),
    (b"ARROW1", _Kind("Arrow", "let its name end in .arrow", "arrow")),
    (b"\xff\xff\xff\xff", _Kind("an Arrow stream", "let its name end in .arrow", "arrow")),
    (b"FEA1", _Kind("Feather of version 1", _CONVERT)),
    (b"ORC", _Kind("ORC", _CONVERT)),
    (b"Obj\x01", _Kind("Avro", _CONVERT)),
    (b"SQLite format 3\x00", _Kind("an SQLite database", _CONVERT)),
    (b"\x89HDF\r\n\x1a\n", _Kind("HDF5", _CONVERT)),
    (b"\x93NUMPY", _Kind("a NumPy array", _CONVERT)),
    (b"%PDF-", _Kind("a PDF document", _CONVERT)),
    (b"\x00\x05\x16\x07", _Kind("what macOS keeps beside a file (AppleDouble), not the file", "leave it out")),
)
_TAR = _Kind("a tar archive", _ARCHIVE)
_JSON = _Kind("JSON text", "let its name end in .jsonl, or in .json", "json")
_PAGE = _Kind("a page of HTML or XML, such as a server answers to a login or an error", "download the file again")
_ZEROS = _Kind("zeros, as a crash or a full disk leaves a file that was not written to its end", "make it again")

_ORDER_MARKS = (  # those of UTF-32 before those that they begin with
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_NULS: dict[tuple[bool, ...], str] = {  # which of the first four bytes are NUL where two plain characters begin a text
    (False, True, False, True): "UTF-16LE",
    (True, False, True, False): "UTF-16BE",
    (False, True, True, True): "UTF-32LE",
    (True, True, True, False): "UTF-32BE",
}


def refuse_foreign(file: InputFile, path: Place) -> None:
    """Look at the first bytes of a file. Raises `DataError`, with the way out, for what its name does not say."""
    with permitted(file.shown, path):
        head = head_of(path, _HEAD_BYTES)
    wanted = compression_of(file) or file.format
    if not head and wanted != "json":
        raise DataError(f"{file.shown}: the file is empty (0 bytes): truncated, or never written; make it again")
    refuse_content(head, wanted, file.shown)


def compression_of(file: InputFile) -> str | None:
    """How it is compressed, as the file's name says."""
    return next((kind for kind, ending in _ENDS.items() if file.name.lower().endswith(ending)), None)


def refuse_content(head: bytes, wanted: str, where: str) -> None:
    """Look at the first bytes of something. Raises `DataError` where it is recognised, and is not what is wanted."""
    encoding = _other_encoding(head) if wanted == "json" else None
    if encoding:
        raise DataError(
            f"{where}: text in {encoding}, and UTF-8 is needed; convert it with iconv -f {encoding} -t UTF-8 FILE"
        )
    kind = _kind_of(head)
    if kind is not None and kind.is_right_for != wanted:
        raise DataError(f"{where}: its content is {kind.what}, not {_MADE_FROM[wanted]}; {kind.way_out}")


def refuse_foreign_text(head: bytes, where: str) -> None:
    """Look at the first bytes of what should be rows of JSON, after decompression.

    Raises `DataError` for what is something else, in another encoding, or one object over several lines.
    """
    refuse_content(head[:_HEAD_BYTES], "json", where)
    if _goes_on_over_lines(head[:_OBJECT_BYTES]):
        raise DataError(
            f"{where}: a JSON object goes on over several lines (pretty-printed), and every line has to be one row;"
            " write one row a line with jq -c . FILE, or with jq -c '.KEY[]' FILE where the rows stand in a list"
            " under KEY"
        )


def refuse_wrapped_rows(row: dict[str, object], known: frozenset[str], where: str) -> None:
    """Look at the only row of a file. Raises `DataError` where the rows stand in a list under one of its keys, or where
    it has a list for each column.

    known: columns that make an object a row.
    """
    if _has_columns(row, known):
        raise DataError(
            f"{where}: one JSON object, which has columns in place of rows; write one row a line with"
            " pandas.read_json(FILE).to_json('rows.jsonl', orient='records', lines=True)"
        )
    if known & row.keys():
        return
    for key, value in row.items():
        first = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else {}
        found = known & first.keys()
        is_turn = found == {"text"} and any(isinstance(first[other], str) for other in first.keys() - found)
        if found and not is_turn:
            raise DataError(
                f"{where}: one JSON object, whose rows stand in a list under the key {key!r};"
                f" write one row a line with jq -c '.{key}[]' FILE"
            )


def _has_columns(row: Mapping[str, object], known: frozenset[str]) -> bool:
    """Whether an object holds a list of several rows' values, or one by their numbers, under each of its keys."""
    if not known & row.keys():
        return False
    if all(map(_is_numbered, row.values())):
        return True
    values = [value for value in row.values() if isinstance(value, list)]
    if len(values) < len(row) or len({len(column) for column in values}) != 1:
        return False
    first = [column[0] for column in values if column]
    is_of_chats = any(isinstance(value, list) and value and isinstance(value[0], dict) for value in first)
    return is_of_chats or (len(first) > 1 and all(isinstance(value, str) for value in first))


def _is_numbered(value: object) -> bool:
    """Whether an object's keys are the numbers from 0 on, as pandas writes a column."""
    return isinstance(value, dict) and bool(value) and list(value) == [str(i) for i in range(len(value))]


def _kind_of(head: bytes) -> _Kind | None:
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    if head[257:262] == b"ustar":
        return _TAR
    if head and not head.strip(b"\0"):
        return _ZEROS
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if re.match(rb"<[!?a-zA-Z]", text):
        return _PAGE
    return _JSON if re.match(rb'\{\s*"|\[\s*\{', text) else None


def _other_encoding(head: bytes) -> str | None:
    """The encoding of a text that is not UTF-8, by its byte order mark or by where its NUL bytes are."""
    marked = next((name for mark, name in _ORDER_MARKS if head.startswith(mark)), None)
    return marked or _NULS.get(tuple(byte == 0 for byte in head[:4]))


def _goes_on_over_lines(head: bytes) -> bool:
    """Whether a text begins with an object that is sound so far, and has line breaks inside."""
    text = head.decode("utf-8-sig", errors="replace").strip()
    end_of_line = text.find("\n")
    if not text.startswith("{") or end_of_line < 0:
        return False
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except RecursionError:
        return False
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(text) - 16 or error.msg.startswith("Unterminated string")
        return is_cut and error.pos > end_of_line
    return end > end_of_line
