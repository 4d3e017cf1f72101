"""Decoding what cannot be memory-mapped: parquet, JSON, compressed or re-typed Arrow.

Each decoder yields record batches of bounded size, in order, with the token columns only.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.json as pj

from pipeline.base.arrays import end_to_end
from pipeline.base.errors import DataError
from pipeline.base.storage import map_file
from pipeline.base.words import first_line
from pipeline.format.columns import SOURCE_COLUMNS
from pipeline.format.options import ROLES
from pipeline.reading.columns import PACK_NAMES, Columns, Selection, find_columns
from pipeline.reading.decoding.growth import (
    chunks_of,
    is_arrow_file,
    refuse_growing_groups,
    refuse_growth,
    require_bounded_views,
)
from pipeline.reading.decoding.json_lines import lines_of, parse_line
from pipeline.reading.files import permitted
from pipeline.reading.remote.ranges import Place, open_place, unchanged
from pipeline.reading.text.integers import integer_lists

if TYPE_CHECKING:
    import pyarrow.parquet as pq


BATCH_VALUES = 1 << 22
"""About how many tokens a decoded batch has; a single row may have more."""

JSON_BYTES = 1 << 23
"""About how much text of JSON is decoded together; a single row may have more."""


@contextmanager
def reading(where: str, path: Place) -> Iterator[None]:
    """Turn what the decoders raise about damaged content into a `DataError`, and where it may not be read, or is not
    what it was; other storage faults pass.

    where: how messages name the file; path: where it is opened.
    """
    try:
        with unchanged(path), permitted(where, path):
            yield
    except (pa.ArrowException, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: cannot be read, damaged or truncated ({first_line(error)})") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise DataError(f"{where}: cannot be read, damaged or truncated ({first_line(error)})") from None


def arrow_batches(path: str, where: str, part: range | None = None) -> Iterator[pa.RecordBatch]:
    """Record batches of an Arrow IPC stream or file, compressed or not. Raises `DataError` for a bomb.

    part: those that are read, if not all are; not of a stream with dictionaries.
    """
    with map_file(path) as file:
        content = file.read_buffer(file.size())
    refuse_growth(content, where)
    if is_arrow_file(content):
        reader = pa.ipc.open_file(content)
        for i in range(reader.num_record_batches) if part is None else part:
            yield reader.get_batch(i)
    elif part is None:
        yield from pa.ipc.open_stream(content)
    else:
        stream = pa.BufferReader(content)
        schema = pa.ipc.read_schema(pa.ipc.read_message(stream))
        for i in range(part.stop):
            message = pa.ipc.read_message(stream)
            if i in part:
                yield pa.ipc.read_record_batch(message, schema)


def parquet_batches(
    path: Place, selection: Selection, where: str, groups: range | None = None
) -> Iterator[pa.RecordBatch]:
    """Record batches of a parquet file, decoded page by page. groups: of rows, if not all are read."""
    metadata = parquet_metadata(path)
    groups = range(metadata.num_row_groups) if groups is None else groups
    schema = metadata.schema.to_arrow_schema()
    columns = find_columns(schema, selection.names, where)
    names = list(dict.fromkeys([*selection.of_file(columns, schema), *(column.name for column in columns.packs)]))
    refuse_growing_groups(path, metadata, names, where, groups)
    with open_columns(path, metadata, names, groups) as file:
        for group in groups:
            described = metadata.row_group(group)
            values = max((described.column(i).num_values for i in range(described.num_columns)), default=0)
            per_row = max(1, values // max(1, described.num_rows))
            size = max(1, min(8192, BATCH_VALUES // per_row))
            yield from file.iter_batches(batch_size=size, row_groups=[group], columns=names, use_threads=False)


@dataclass(frozen=True)
class JsonColumns:
    """What is read of a file of JSON."""

    schema: pa.Schema
    """The types of the columns."""

    absent: tuple[str, ...]
    """Columns that no row may have, because the first has not."""


def parquet_metadata(path: Place) -> pq.FileMetaData:
    """The footer of a parquet file."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - tens of milliseconds, for some inputs alone

    with open_place(path, []) as file:
        return pq.read_metadata(file)


@contextmanager
def open_columns(
    path: Place, metadata: pq.FileMetaData, names: Sequence[str], groups: range
) -> Iterator[pq.ParquetFile]:
    """A parquet file of which some columns, or parts of them, of some row groups are read, one group after the other.

    metadata: its footer; names: the columns, or the paths of the parts.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415 - tens of milliseconds, for some inputs alone

    spans = []
    for group in map(metadata.row_group, groups):
        for chunk in chunks_of(group, names):
            start = min(chunk.dictionary_page_offset or chunk.data_page_offset, chunk.data_page_offset)
            spans.append(range(start, start + chunk.total_compressed_size))
    with open_place(path, spans, num_streams=len(names)) as opened:
        yield pq.ParquetFile(opened, metadata=metadata, buffer_size=1 << 20, pre_buffer=False)


def json_batches(
    blocks: Iterator[bytes], columns: JsonColumns, where: str, first_row: int = 0
) -> Iterator[pa.RecordBatch]:
    """Record batches of blocks of JSON lines; a row that lacks a column has a null.

    first_row: the number of the first one in its file.
    """
    for block in blocks:
        batch = _parse_block(block, columns.schema, columns.absent, where, first_row)
        first_row += batch.num_rows
        yield batch


def json_columns(block: bytes, selection: Selection, where: str) -> JsonColumns:
    """The columns of a file, judged by its first row, and so their types. block: its first.

    A mask that is empty in the first row is judged by the first row where it is not.
    """
    rows = (_parse(line, f"{where}, row {i}") for i, line in enumerate(lines_of(block)))
    first = next(rows)
    whole = pa.schema([(name, _json_type(value)) for name, value in first.items()])
    columns = find_columns(whole, selection.names, where)
    kinds = {name: pa.int64() for name in columns.names()}
    masks = {name for name in columns.names() if name != columns.tokens and first[name] == []}
    if masks:
        for row in rows:
            first |= {name: row[name] for name in masks if first[name] == [] and row.get(name)}
            if all(first[name] for name in masks):
                break
    for name in columns.names():
        if first[name] and isinstance(first[name][0], bool):
            kinds[name] = pa.bool_()
    schema = pa.schema([(name, pa.list_(kind)) for name, kind in kinds.items()])
    for column in columns.packs:
        if column.name not in kinds:
            is_nested = bool(first[column.name]) and isinstance(first[column.name][0], list)
            kind = pa.list_(pa.int64())
            schema = schema.append(pa.field(column.name, pa.list_(kind) if is_nested else kind))
    for extra in selection.of_file(columns, whole)[len(kinds) :]:
        kind = pa.int64() if extra in SOURCE_COLUMNS.values() and type(first[extra]) is int else None
        kind = kind or (pa.string() if isinstance(first[extra], str) else pa.list_(pa.float64()))
        schema = schema.append(pa.field(extra, kind))
    names = (*(selection.names.get(role, role) for role in ROLES), *PACK_NAMES)
    return JsonColumns(schema, tuple(name for name in names if name not in first))


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        return parse_line(line)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


def _json_type(value: Any) -> pa.DataType:
    try:
        return pa.infer_type([value])
    except (pa.ArrowException, ValueError, RecursionError):
        return pa.string()  # a mixture; only token columns are looked at, and they are refused by name


def _parse_block(block: bytes, schema: pa.Schema, absent: Sequence[str], where: str, first_row: int) -> pa.RecordBatch:
    if all(field.type == pa.list_(pa.int64()) for field in schema):
        plain = integer_lists(block, schema.names, absent)
        if plain is not None:
            return plain
    import pyarrow.compute as pc  # noqa: PLC0415 - tens of milliseconds, for some inputs alone

    watched = pa.schema([*schema, *((name, pa.list_(pa.int64())) for name in absent)])
    try:
        table = pj.read_json(
            pa.BufferReader(block),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pj.ParseOptions(explicit_schema=watched, unexpected_field_behavior="ignore"),
        ).combine_chunks()
    except pa.ArrowInvalid as error:
        unmarked = block.removeprefix(codecs.BOM_UTF8)  # files joined, each with its byte order mark
        unmarked = unmarked.replace(b"\n" + codecs.BOM_UTF8, b"\n")
        if unmarked != block:
            return _parse_block(unmarked, schema, absent, where, first_row)
        raise _json_fault(block, watched, where, first_row, error) from None
    for name in absent:
        column = table.column(name)
        if column.null_count < len(column):
            row = first_row + pc.index(column.is_null(), False).as_py()
            why = (
                "; it tells that rows are packed, and has to be in all of them or in none" if name in PACK_NAMES else ""
            )
            raise DataError(f"{where}, row {row}: has a column {name!r}, which row 0 lacks{why}")
    return table.select(schema.names).to_batches()[0]


def _is_plain(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _json_fault(block: bytes, schema: pa.Schema, where: str, first_row: int, error: Exception) -> DataError:
    """The row at which a block cannot be read."""
    for row, line in enumerate(lines_of(block), first_row):
        try:
            value = _parse(line, f"{where}, row {row}")
        except DataError as fault:
            return fault
        for field in schema:
            if not pa.types.is_list(field.type) or not _is_plain(field.type.value_type):
                try:
                    pa.array([value.get(field.name)], field.type)
                except (pa.ArrowException, ValueError, TypeError):
                    wanted = {pa.string(): "text", pa.int64(): "an integer"}.get(field.type, "a list of numbers")
                    message = f"{where}, row {row}: column {field.name!r} is not {wanted}"
                    return DataError(message + (", as in row 0" if row else ""))
                continue
            kind = bool if pa.types.is_boolean(field.type.value_type) else int
            values = value.get(field.name)
            if values is None:
                continue
            if not isinstance(values, list):
                kind_of_value = type(values).__name__
                return DataError(f"{where}, row {row}: column {field.name!r} is {kind_of_value}; a list is needed")
            for position, item in enumerate(values):
                if item is not None and (type(item) is not kind or not -(2**63) <= item < 2**63):
                    return DataError(
                        f"{where}, row {row}: column {field.name!r} holds {item!r} at position {position};"
                        f" lists of {'booleans' if kind is bool else 'integers'} are needed"
                    )
    return DataError(f"{where}: cannot be read ({error})")


class TooWide(Exception):
    """A value has no place in the narrow type of its column."""


def addressable(
    batch: pa.RecordBatch, columns: Columns, selection: Selection, where: str, *, is_narrow: bool
) -> Iterator[pa.RecordBatch]:
    """What is read of a decoded batch as it can be addressed, in pieces of bounded size.

    Booleans become bytes, and list views lists; nothing else changes type, but that tokens and labels have at most 32
    bits where is_narrow, and masks at most 8. Raises `DataError` for views that would be too much as lists, and
    `TooWide`, where is_narrow, for a value that does not fit.
    """
    import pyarrow.compute as pc  # noqa: PLC0415 - tens of milliseconds, for some inputs alone

    arrays = []
    names = selection.of_file(columns, batch.schema)
    for name in names:
        column = batch.column(batch.schema.get_field_index(name))
        require_bounded_views(column, f"{where}, column {name!r}")
        array = end_to_end(column)
        array.validate(full=True)
        if name in columns.names() and pa.types.is_boolean(array.type.value_type):
            array = array.cast(pa.large_list(pa.uint8()))
        elif name in columns.names() and is_narrow:
            array = _narrowed(array, pa.int32() if name in columns.ids() else pa.int8())
        arrays.append(array)
    kept = pa.record_batch(arrays, names=names)
    lengths = pc.list_value_length(kept.column(0))
    tokens = pc.sum(lengths).as_py() or 0
    size = max(1, min(8192, BATCH_VALUES * max(1, kept.num_rows) // max(1, tokens)))
    for start in range(0, kept.num_rows, size):
        yield kept.slice(start, size)


def _narrowed(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Lists of wide integers as lists of narrower ones; others as they are. Raises `TooWide`."""
    values = array.type.value_type
    if not pa.types.is_integer(values) or values.bit_width <= kind.bit_width:
        return array
    if pa.types.is_fixed_size_list(array.type):
        narrow = pa.list_(kind, array.type.list_size)
    else:
        narrow = pa.large_list(kind) if pa.types.is_large_list(array.type) else pa.list_(kind)
    try:
        return array.cast(narrow)
    except pa.ArrowInvalid:
        raise TooWide from None
