"""What bounds files that grow when they are decoded: a few kilobytes can stand for any number of zeros.

Memory holds a row of JSON, a page of parquet, or a record batch of Arrow at a time. A row of JSON has a bound of its
own. What is compressed may grow as real data does, and without a bound while it is small; what does neither is refused
before it is decoded.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from pipeline.base.arrays import is_list_view
from pipeline.base.errors import DataError
from pipeline.base.storage import map_file
from pipeline.base.words import in_one_line
from pipeline.reading.remote.ranges import Place, open_place

if TYPE_CHECKING:
    import pyarrow.parquet as pq


MOST_GROWTH = 100
"""How many bytes may come of one; text and tokens give 2 to 20, and ones that repeat some 50."""

MOST_BYTES = 1 << 30
"""What may come of a record batch of Arrow, or of the values of a row group of parquet, however few bytes it has."""

MOST_ROW_BYTES = 1 << 27
"""What a row of JSON, or a page of parquet that grows as nothing real does, may have."""

MOST_TEXT_GROWTH, MOST_TEXT_BYTES = 500, 1 << 34
"""The same of a whole compressed text, which is never in memory, but on disk perhaps."""

_RECORD_BATCH, _DICTIONARY = 3, 2  # kinds of message
_HEADER_BYTES = 1 << 16  # of a page of parquet, with its statistics
_VALUE_BYTES = 8
_INTEGERS = (4, 5, 6)  # types of Thrift's compact protocol
_FIXED = {3: 1, 7: 8}  # of those, a byte and a double


def require_short(size: int, where: str) -> None:
    """Raise `DataError` for a row of JSON that has more bytes than one may have."""
    if size > MOST_ROW_BYTES:
        raise DataError(
            f"{where}: a row goes on behind {MOST_ROW_BYTES:,} bytes, the most that one may have; rows are objects,"
            " one a line, and lines end with LF"
        )


class GrowingText(io.RawIOBase):
    """A decompressed text, which raises `DataError` where it has grown as nothing real does."""

    def __init__(self, text: pa.NativeFile, compressed: int, where: str) -> None:
        """compressed: the bytes that the text comes of; where: how messages name the file."""
        self._text, self._compressed, self._where = text, compressed, where
        self._read = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read the next bytes; 0 at the end."""
        count = int(self._text.readinto(buffer))
        self._read += count
        if self._read > max(MOST_TEXT_BYTES, MOST_TEXT_GROWTH * self._compressed):
            raise DataError(
                f"{self._where}: a decompression bomb? More than {self._read:,} bytes come of {self._compressed:,},"
                f" over {MOST_TEXT_GROWTH} of each; if that is meant, decompress the file and name what comes of it"
            )
        return count


def refuse_growth(content: pa.Buffer, where: str) -> None:
    """Raise `DataError` for a compressed record batch, in an Arrow stream or file, that would grow beyond the bounds.

    O(number of record batches and columns): nothing is decompressed.
    """
    first_row = 0
    for message in _messages(content):
        first_row += require_bounded(message, first_row, where)


def sizes_of_batches(content: pa.Buffer) -> list[tuple[int, int]]:
    """Rows and bytes of each record batch of an Arrow stream or file; none of a stream whose values stand in
    dictionaries, which has to be read in order. O(number of record batches).
    """
    sizes = []
    for message in _messages(content):
        described = _Table.root(message.metadata)
        kind = described.number(1, "<B")
        if kind == _DICTIONARY and not is_arrow_file(content):
            return []
        if kind == _RECORD_BATCH:
            sizes.append((described.table(2).number(0, "<q"), message.body.size))
    return sizes


def growth_of(path: Path) -> str | None:
    """What is wrong with a shard that grows beyond the bounds; None if it does not."""
    try:
        with map_file(path) as file:
            refuse_growth(file.read_buffer(), "its content")
    except DataError as error:
        return str(error)
    except (OSError, pa.ArrowException) as error:
        return f"it cannot be read ({in_one_line(error)})"
    return None


def require_bounded(message: pa.Message, first_row: int, where: str) -> int:
    """The rows of a message. Raises `DataError` if it is compressed and would grow beyond the bounds."""
    described = _Table.root(message.metadata)
    kind = described.number(1, "<B")
    if kind not in (_RECORD_BATCH, _DICTIONARY):
        return 0
    batch = described.table(2) if kind == _RECORD_BATCH else described.table(2).table(1)
    num_rows = batch.number(0, "<q") if kind == _RECORD_BATCH else 0
    if batch.field(3):
        body, size = message.body, 0
        for buffer in batch.structs(2, 16):
            offset, length = batch.value(buffer, "<q"), batch.value(buffer + 8, "<q")
            if length >= 8 and 0 <= offset <= body.size - 8:
                size += max(0, struct.unpack_from("<q", body, offset)[0])
        _require(size, body.size, f"{where}, rows from {first_row}", "smaller record batches")
    return num_rows


def require_bounded_views(array: pa.Array, where: str) -> None:
    """Raise `DataError` for list views that show the same values so often that lists would be beyond the bounds."""
    import pyarrow.compute as pc  # noqa: PLC0415 - tens of milliseconds, for some inputs alone

    if is_list_view(array.type):
        values = pc.sum(pc.list_value_length(array)).as_py() or 0
        _require(_VALUE_BYTES * values, array.values.nbytes, where, "lists instead of list views")


def refuse_growing_groups(
    path: Place, metadata: pq.FileMetaData, read: Iterable[str], where: str, groups: range | None = None
) -> None:
    """Raise `DataError` for a row group of parquet that would grow beyond the bounds.

    read: the columns, or parts of them, that are read; groups: those that are read, if not all.

    O(number of row groups and columns), and of the pages of columns that grow much.
    """
    wanted = tuple(read)
    first_row = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        first_row += group.num_rows
        if groups is not None and number not in groups:
            continue
        chunks = chunks_of(group, wanted)
        rows = f"{where}, rows {first_row - group.num_rows} to {first_row - 1}"
        size = sum(chunk.total_compressed_size for chunk in chunks)
        values = max((chunk.num_values for chunk in chunks), default=0)
        _require(_VALUE_BYTES * values, size, rows, "smaller row groups")
        for chunk in chunks:
            if chunk.total_uncompressed_size > max(MOST_ROW_BYTES, MOST_GROWTH * chunk.total_compressed_size):
                _refuse_growing_pages(path, chunk, f"{rows}, column {chunk.path_in_schema!r}")


def chunks_of(group: pq.RowGroupMetaData, read: Collection[str]) -> list[pq.ColumnChunkMetaData]:
    """The chunks of columns, or parts of them, in a row group."""
    chunks = [group.column(i) for i in range(group.num_columns)]
    return [one for one in chunks if any(f"{one.path_in_schema}.".startswith(f"{path}.") for path in read)]


def _refuse_growing_pages(path: Place, chunk: pq.ColumnChunkMetaData, where: str) -> None:
    at = chunk.dictionary_page_offset or chunk.data_page_offset
    end = at + chunk.total_compressed_size
    with open_place(path, []) as file:
        while at < end:
            file.seek(at)
            header = PageHeader.of(file.read(_HEADER_BYTES))
            _require(header.uncompressed, header.compressed, where, "smaller pages", MOST_ROW_BYTES)
            at += header.size + header.compressed


def _require(decoded: int, encoded: int, where: str, parts: str, least: int | None = None) -> None:
    if decoded > max(MOST_BYTES if least is None else least, MOST_GROWTH * encoded):
        raise DataError(
            f"{where}: a decompression bomb? {decoded:,} bytes would come of {encoded:,}, over {MOST_GROWTH} of each;"
            f" if that is meant, write the file anew with {parts}"
        )


class PageHeader(NamedTuple):
    """What is known of a page of parquet before it is decoded, in bytes."""

    size: int
    """Of the header itself."""

    uncompressed: int
    compressed: int

    @classmethod
    def of(cls, data: bytes) -> PageHeader:
        """Read it. Raises `pa.ArrowInvalid` for what is none."""
        try:
            size, fields = _thrift_struct(data, 0)
            if fields[2] < 0 or fields[3] < 0:
                raise ValueError(fields)
        except (IndexError, KeyError, ValueError, RecursionError):
            raise pa.ArrowInvalid("a header of a page cannot be read") from None
        return cls(size, fields[2], fields[3])


def _thrift_struct(data: bytes, at: int) -> tuple[int, dict[int, int]]:
    """Where a struct in Thrift's compact protocol ends, and its integers by the number of their field."""
    number, fields = 0, {}
    while data[at]:
        step, kind = data[at] >> 4, data[at] & 15
        at += 1
        if step:
            number += step
        else:
            at, number = _zigzag(data, at)
        if kind in _INTEGERS:
            at, fields[number] = _zigzag(data, at)
        else:
            at = _thrift_end(data, at, kind)
    return at + 1, fields


def _thrift_end(data: bytes, at: int, kind: int) -> int:
    """Where a value of a type ends that is no integer of several bytes."""
    if kind in (1, 2):  # true and false, which have no content
        return at
    if kind == 12:
        return _thrift_struct(data, at)[0]
    if kind == 8:
        at, size = _varint(data, at)
        return at + size
    if kind in _FIXED:
        return at + _FIXED[kind]
    raise ValueError(kind)  # lists and maps, which pages have none of


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] >= 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return at + 1, value | data[at] << shift


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    at, value = _varint(data, at)
    return at, value >> 1 ^ -(value & 1)


def _messages(content: pa.Buffer) -> Iterator[pa.Message]:
    """All messages of an Arrow stream or file, without their content."""
    file = pa.BufferReader(content)
    if not is_arrow_file(content):
        with contextlib.suppress(EOFError):
            while True:
                yield pa.ipc.read_message(file)
        return
    pa.ipc.open_file(content)  # which refuses a damaged footer
    (size,) = struct.unpack_from("<i", content, content.size - 10)
    footer = _Table.root(content.slice(content.size - 10 - size, size))
    for blocks in (2, 3):  # dictionaries, record batches
        for offset in footer.structs(blocks, 24):
            file.seek(footer.value(offset, "<q"))
            yield pa.ipc.read_message(file)


class _Table(NamedTuple):
    """A table of FlatBuffers, in which Arrow describes its messages; Arrow has checked that it is sound."""

    data: pa.Buffer
    at: int

    @classmethod
    def root(cls, data: pa.Buffer) -> _Table:
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def value(self, at: int, kind: str) -> int:
        return int(struct.unpack_from(kind, self.data, at)[0])

    def field(self, number: int) -> int:
        """Where a field is; 0 if it is not there."""
        index = self.at - self.value(self.at, "<i")
        entry = 4 + 2 * number
        offset = self.value(index + entry, "<H") if entry < self.value(index, "<H") else 0
        return self.at + offset if offset else 0

    def number(self, number: int, kind: str) -> int:
        at = self.field(number)
        return self.value(at, kind) if at else 0

    def table(self, number: int) -> _Table:
        at = self.field(number)
        return _Table(self.data, at + self.value(at, "<I"))

    def structs(self, number: int, size: int) -> Iterator[int]:
        """Where each of a field's structs of so many bytes is."""
        at = self.field(number)
        if at:
            start = at + self.value(at, "<I")
            yield from (start + 4 + size * i for i in range(self.value(start, "<I")))


def is_arrow_file(content: pa.Buffer) -> bool:
    """Whether it is in the IPC *file* format, which starts with a magic word."""
    return bool(content.slice(0, 6).to_pybytes() == b"ARROW1")
