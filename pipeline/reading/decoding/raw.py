"""Raw rows of input files, in order, as blocks of bounded size that are parsed where they are used."""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.base.arrays import is_list, is_list_view
from pipeline.base.errors import DataError
from pipeline.base.storage import map_file
from pipeline.reading.decoding.batches import arrow_batches, open_columns, parquet_metadata, reading
from pipeline.reading.decoding.foreign import compression_of, refuse_foreign
from pipeline.reading.decoding.growth import is_arrow_file, refuse_growing_groups
from pipeline.reading.decoding.json_lines import first_block, lines_of, parse_line, text_blocks
from pipeline.reading.decoding.unread import light_parts, unread_rows
from pipeline.reading.files import InputFile
from pipeline.reading.remote.ranges import Place, size_of

if TYPE_CHECKING:
    import pyarrow.parquet as pq


log = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 17
"""About how much text a block has; a single row may have more. Small, so that what it becomes stays in the cache."""

BLOCK_ROWS = 4096
"""Rows of a block at most, however short they are."""

_DECODED_ROWS, _DECODED_BYTES = 256, 1 << 25  # at a time, from parquet, by the mean of a row group

_LOOK_ROWS = 100
_LOOK_BLOCKS = 2

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RawBlock:
    """Consecutive rows of one file."""

    content: bytes | pa.RecordBatch
    """Lines of JSON, or a record batch."""

    bytes_read: int
    """Its part of the file, for the progress bar; an estimate where the file is compressed."""

    unread: Mapping[str, int] = field(default_factory=dict)
    """Column that is not among its own -> rows about here in which it has content; over a file they add up."""

    @property
    def num_bytes(self) -> int:
        """Bytes of its content in memory."""
        return len(self.content) if isinstance(self.content, bytes) else int(self.content.nbytes)

    @property
    def num_rows(self) -> int:
        """Counted without parsing them."""
        content = self.content
        return sum(1 for _ in lines_of(content)) if isinstance(content, bytes) else int(content.num_rows)

    def row(self, number: int) -> RawBlock:
        """One of its rows as a block."""
        if isinstance(self.content, bytes):
            return RawBlock(next(itertools.islice(lines_of(self.content), number, None)), 0)
        return RawBlock(self.content.slice(number, 1), 0)

    def rows(self) -> Iterator[Row | ValueError]:
        """Each row, or what is wrong with it."""
        if isinstance(self.content, bytes):
            for line in lines_of(self.content):
                try:
                    yield parse_line(line)
                except ValueError as error:
                    yield error
        else:
            columns = [
                (name, column.to_pylist(), _converter(column.type))
                for name, column in zip(self.content.schema.names, self.content.columns, strict=True)
            ]
            for values in zip(*(column for _, column, _ in columns), strict=True):
                row: Row | ValueError
                try:
                    row = {name: convert(value) for (name, _, convert), value in zip(columns, values, strict=True)}
                except (ValueError, RecursionError) as error:  # a column of Arrow's JSON type, which it does not check
                    row = ValueError(f"not valid JSON ({error})")
                yield row


@dataclass(frozen=True, kw_only=True)
class RawFile:
    """An input file of raw rows."""

    file: InputFile
    path: Place
    """Where it is opened."""

    columns: tuple[str, ...]
    """The columns of its schema; of JSON, the keys of the first row."""

    is_empty: bool
    """Whether it has no rows."""

    @property
    def where(self) -> str:
        """How messages name it."""
        return self.file.shown

    @property
    def is_open_ended(self) -> bool:
        """Whether rows may have columns that the first one lacks."""
        return self.file.format == "json"

    def blocks(self, columns: Sequence[str]) -> Iterator[RawBlock]:
        """Its rows with the given columns at least, read anew at each call. Raises `DataError` for damaged content."""
        with reading(self.where, self.path):
            if self.file.format == "json":
                yield from self._json_blocks()
            elif self.file.format == "parquet":
                yield from _parquet_blocks(self.path, self.where, columns)
            else:
                assert isinstance(self.path, str), "Arrow is mapped"
                yield from _arrow_blocks(self.path, self.where, columns)

    def first_rows(self) -> list[Row]:
        """The rows that are looked at to tell what a row is: at most a hundred, or what is in the first blocks."""
        columns = [name for name in self.columns if self.columns.count(name) == 1]
        blocks = itertools.islice(self.blocks(columns), _LOOK_BLOCKS)
        rows = (row for block in blocks for row in block.rows() if isinstance(row, dict))
        return list(itertools.islice(rows, _LOOK_ROWS))

    def _json_blocks(self) -> Iterator[RawBlock]:
        # What is read of a compressed file is not known before its end; typical text shrinks to a quarter.
        shrunk = 4 if compression_of(self.file) else 1
        for block in text_blocks(self.file, self.path, BLOCK_BYTES):
            for lines in _short_blocks(block):
                yield RawBlock(lines, len(lines) // shrunk)


def open_raw(file: InputFile, path: Place) -> RawFile:
    """Look at a file's columns. Raises `DataError` for damaged content, and for what is not what its name says."""
    refuse_foreign(file, path)
    with reading(file.shown, path):
        if file.format == "json":
            first = first_block(file, path, BLOCK_BYTES)
            if not first:
                log.warning("%s: there is no row in it", file.shown)
            return RawFile(file=file, path=path, columns=_json_columns(first, file.shown), is_empty=not first)
        if file.format == "parquet":
            metadata = parquet_metadata(path)
            columns, is_empty = tuple(metadata.schema.to_arrow_schema().names), not metadata.num_rows
            return RawFile(file=file, path=path, columns=columns, is_empty=is_empty)
        assert isinstance(path, str), "Arrow is mapped"
        is_empty = not any(batch.num_rows for batch in arrow_batches(path, file.shown))
        return RawFile(file=file, path=path, columns=_arrow_columns(path), is_empty=is_empty)


def _short_blocks(block: bytes) -> Iterator[bytes]:
    """Lines in blocks of no more than a block may have."""
    if block.count(b"\n") <= BLOCK_ROWS:
        yield block
        return
    lines = [line for line in block.split(b"\n") if line.strip()]
    for start in range(0, len(lines), BLOCK_ROWS):
        yield b"\n".join(lines[start : start + BLOCK_ROWS])


def _json_columns(block: bytes, where: str) -> tuple[str, ...]:
    """The keys of the first row that has any. Raises `DataError` where no row has, and one is broken."""
    fault = ""
    for number, line in enumerate(lines_of(block)):
        try:
            columns = tuple(parse_line(line))
        except ValueError as error:
            fault = fault or f"row {number}: {error}"
        else:
            if columns:
                return columns
    if fault:
        raise DataError(f"{where}, {fault}")
    return ()


def _arrow_columns(path: str) -> tuple[str, ...]:
    with map_file(path) as mapped:
        is_file = is_arrow_file(mapped.read_buffer(8))
        mapped.seek(0)
        reader = pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)
        return tuple(reader.schema.names)


def _arrow_blocks(path: str, where: str, columns: Sequence[str]) -> Iterator[RawBlock]:
    def batches() -> Iterator[tuple[pa.RecordBatch, int, Counter[str]]]:
        for batch in arrow_batches(path, where):
            selected = batch.select(list(columns))
            selected.validate(full=True)
            yield selected, batch.nbytes, unread_rows(batch, columns)

    return _even_blocks(batches())


def _parquet_blocks(path: Place, where: str, columns: Sequence[str]) -> Iterator[RawBlock]:
    metadata = parquet_metadata(path)
    per_row = size_of(path) / max(1, metadata.num_rows)
    light, heavy = light_parts(metadata, columns)
    read = [*columns, *light]
    refuse_growing_groups(path, metadata, read, where)
    with open_columns(path, metadata, read, range(metadata.num_row_groups)) as file:

        def batches() -> Iterator[tuple[pa.RecordBatch, int, Counter[str]]]:
            more = heavy
            decoded = file.iter_batches(_decoded_rows(file.metadata), columns=read, use_threads=False)
            for batch in decoded:
                unread, more = unread_rows(batch, columns) + more, Counter()
                yield batch.select(list(columns)), int(per_row * batch.num_rows), unread

        yield from _even_blocks(batches())


def _decoded_rows(metadata: pq.FileMetaData) -> int:
    """How many rows of a parquet file are decoded at a time."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    per_row = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=0)
    return int(max(1, min(_DECODED_ROWS, _DECODED_BYTES // max(1, per_row))))


def _even_blocks(batches: Iterable[tuple[pa.RecordBatch, int, Counter[str]]]) -> Iterator[RawBlock]:
    """Record batches, with bytes read and unread columns of each, cut or joined to about the size of a block."""
    waiting: list[pa.RecordBatch] = []
    unread: Counter[str] = Counter()
    num_rows = num_bytes = bytes_read = 0
    for batch, batch_bytes_read, of_batch in batches:
        unread.update(of_batch)
        size = max(1, min(BLOCK_ROWS, BLOCK_BYTES * batch.num_rows // max(1, batch.nbytes)))
        even = (batch.slice(start, size) for start in range(0, batch.num_rows, size))
        for piece in itertools.chain.from_iterable(map(_halved, even)):
            waiting.append(piece)
            num_rows += piece.num_rows
            num_bytes += piece.nbytes
            bytes_read += batch_bytes_read * piece.num_rows // batch.num_rows
            if num_rows >= BLOCK_ROWS or num_bytes >= BLOCK_BYTES:
                yield RawBlock(pa.concat_batches(waiting), bytes_read, unread)
                waiting, num_rows, num_bytes, bytes_read, unread = [], 0, 0, 0, Counter()
    if waiting:
        yield RawBlock(pa.concat_batches(waiting), bytes_read, unread)


def _halved(piece: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Rows in parts that have twice a block's bytes at most, unless they are one row: long ones stand side by side."""
    if piece.num_rows == 1 or piece.nbytes <= 2 * BLOCK_BYTES:
        yield piece
        return
    half = piece.num_rows // 2
    yield from _halved(piece.slice(0, half))
    yield from _halved(piece.slice(half))


def _converter(kind: pa.DataType) -> Callable[[Any], Any]:
    """What makes of an Arrow value what the same row would be in JSON.

    A struct has all its fields in every row; those that are null are absent in truth.
    """
    if isinstance(kind, pa.JsonType):
        return lambda value: None if value is None else json.loads(value)
    if pa.types.is_struct(kind):
        fields = [(field.name, _converter(field.type)) for field in kind]
        return lambda value: value and {name: f(value[name]) for name, f in fields if value[name] is not None}
    if pa.types.is_map(kind):
        item = _converter(kind.item_type)
        return lambda value: value and {name: item(one) for name, one in value}
    if is_list(kind) or is_list_view(kind):
        inner = _converter(kind.value_type)
        return (lambda value: value) if inner is _same else (lambda value: value and [inner(one) for one in value])
    return _same


def _same(value: Any) -> Any:
    return value
