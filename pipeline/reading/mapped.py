"""Memory-mapped Arrow files, indexed by record batch, so that any run of rows can be addressed again.

Only an index of a few integers a record batch is held; the batches themselves are opened when a window
needs them and forgotten after.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.base import storage
from pipeline.base.arrays import Integers, as_numpy, is_list_view, list_offsets
from pipeline.base.errors import DataError
from pipeline.format.columns import SOURCE_COLUMNS, SOURCE_ROW
from pipeline.format.options import TOKENS
from pipeline.reading.columns import Columns, find_columns, tells_sources
from pipeline.reading.decoding.growth import is_arrow_file, refuse_growth, require_bounded
from pipeline.reading.decoding.packs import refuse_packs
from strategies.arrays import Int64Array

_END_OF_STREAM = struct.pack("<iI", -1, 0)


@dataclass(frozen=True, kw_only=True)
class MappedFile:
    """An uncompressed Arrow file whose token columns can be addressed in place.

    It travels between processes without its content, which is mapped again where it arrives.
    """

    path: str
    content: pa.Buffer
    """The whole file; pages are read when they are touched, and stay mapped for the next window."""

    name: str
    """How messages name it."""

    first_row: int
    """What messages call its first row: not 0 where it holds a part of the file they name."""

    columns: Columns
    schema: pa.Schema
    position: Int64Array
    """Where each record batch is: its byte position in a stream, its number in a file.  # shape: (num_batches,)"""

    row_offsets: Int64Array
    """First row of each record batch, and the end.  # shape: (num_batches + 1,)"""

    token_offsets: Int64Array
    """First token of each record batch, and the end.  # shape: (num_batches + 1,)"""

    row_base: int | None = None
    """What `SOURCE_ROW` says of the first row of the file that messages name, where a row of it may have given several
    of these; None where they are its rows."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "content"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, content=_map(state["path"]))

    @property
    def num_rows(self) -> int:
        """Rows of all record batches."""
        return int(self.row_offsets[-1])

    @property
    def num_source_rows(self) -> int:
        """Rows of the file that it came from."""
        if self.row_base is None or not self.num_rows:
            return self.num_rows
        (last,) = self.batches(self.num_rows - 1, self.num_rows)
        return int(_integers(last, SOURCE_ROW)[0]) - self.row_base + 1

    @property
    def tells_sources(self) -> bool:
        """Whether each of its rows says of which raw row it was made, and the turn that ends it."""
        return tells_sources(self.schema)

    def words_of(self, row: int) -> str:
        """Words naming a row as its file has it; of one that may give several samples also which of them it is."""
        if self.row_base is None:
            return f"row {self.first_row + row}"
        of_samples = np.concatenate([_integers(batch, SOURCE_ROW) for batch in self.batches(0, row + 1)])
        before = np.count_nonzero(of_samples[:-1] == of_samples[-1])
        return f"row {of_samples[-1] - self.row_base}, sample {before} in it"

    def sources(self, start: int, stop: int) -> tuple[Int64Array, Int64Array]:
        """The raw row of each of rows start..stop-1, and the turn that ends it. Raises `DataError` for a null."""
        told = []
        for name in SOURCE_COLUMNS.values():
            parts = [np.empty(0, np.int64)]
            for batch in self.batches(start, stop):
                if batch.column(batch.schema.get_field_index(name)).null_count:
                    raise DataError(f"{self.name}: column {name!r} holds a null; every sample has a raw row and a turn")
                parts.append(_integers(batch, name).astype(np.int64))
            told.append(np.concatenate(parts))
        return told[0], told[1]

    def batches(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """The record batches of rows start..stop-1, cut to them; their buffers are views of the file."""
        first = int(np.searchsorted(self.row_offsets, start, side="right")) - 1
        file = pa.BufferReader(self.content)
        reader = pa.ipc.open_file(file) if is_arrow_file(self.content) else None
        for i in range(first, len(self.position)):
            begin, end = int(self.row_offsets[i]), int(self.row_offsets[i + 1])
            if begin >= stop:
                break
            if reader is not None:
                batch = reader.get_batch(int(self.position[i]))
            else:
                file.seek(int(self.position[i]))
                batch = pa.ipc.read_record_batch(pa.ipc.read_message(file), self.schema)
            yield batch.slice(max(0, start - begin), min(stop, end) - max(start, begin))


def map_file(
    path: str, names: Mapping[str, str], name: str, first_row: int = 0, row_base: int | None = None
) -> MappedFile | None:
    """Index an Arrow file; None if it has to be decoded first.

    That is so of compressed buffers, booleans, dictionaries and list views.

    names: role -> column, where it is not called like its role; name, first_row, row_base: see `MappedFile`.
    Raises `DataError` for a missing column, a damaged or truncated file, and rows that are packs of samples.
    """
    positions: list[int] = []
    rows = [0]
    tokens = [0]
    content = _map(path)
    file = pa.BufferReader(content)
    if is_arrow_file(content):
        refuse_growth(content, name)
        reader = pa.ipc.open_file(file)
        schema = reader.schema
        batches = iter([(i, reader.get_batch(i)) for i in range(reader.num_record_batches)])
    else:
        schema, batches = _stream(file, content, name)
    columns = find_columns(schema, names, name)
    if _is_nested(schema, lambda kind: pa.types.is_dictionary(kind) or is_list_view(kind)) or any(
        pa.types.is_boolean(schema.field(column).type.value_type) for column in columns.names()
    ):
        return None
    for position, batch in batches:
        arrays = [batch.column(batch.schema.get_field_index(column)) for column in columns.names()]
        if not all(_lies_in(array, content) for array in arrays):
            return None
        for array in arrays:
            array.validate(full=True)  # offsets that rise and stay inside the values
        refuse_packs(batch, columns, name, first_row + rows[-1])
        offsets = list_offsets(arrays[0])
        positions.append(position)
        rows.append(rows[-1] + batch.num_rows)
        tokens.append(tokens[-1] + int(offsets[-1] - offsets[0]))
    return MappedFile(
        path=path,
        content=content,
        name=name,
        first_row=first_row,
        row_base=row_base,
        columns=columns,
        schema=schema,
        position=np.array(positions, np.int64),
        row_offsets=np.array(rows, np.int64),
        token_offsets=np.array(tokens, np.int64),
    )


def _integers(batch: pa.RecordBatch, name: str) -> Integers:
    return as_numpy(batch.column(batch.schema.get_field_index(name)))


def _map(path: str) -> pa.Buffer:
    with storage.map_file(path) as file:
        return file.read_buffer(file.size())


def empty_file(path: str, name: str) -> MappedFile:
    """A file without rows, whatever its columns."""
    nothing, zero = np.zeros(0, np.int64), np.zeros(1, np.int64)
    columns = Columns(tokens=TOKENS, targets=None, targets_are_labels=False, attention=None)
    return MappedFile(
        path=path,
        content=pa.py_buffer(b""),
        name=name,
        first_row=0,
        columns=columns,
        schema=pa.schema([]),
        position=nothing,
        row_offsets=zero,
        token_offsets=zero,
    )


def _stream(
    file: pa.BufferReader, whole: pa.Buffer, name: str
) -> tuple[pa.Schema, Iterator[tuple[int, pa.RecordBatch]]]:
    """Schema of an IPC stream, and its record batches with their byte positions."""
    if whole.size < 8 or whole.slice(whole.size - 8).to_pybytes() != _END_OF_STREAM:
        raise DataError(f"{name}: the Arrow stream has no end mark; the file is truncated, or its writer was stopped")
    schema = pa.ipc.read_schema(pa.ipc.read_message(file))

    def batches() -> Iterator[tuple[int, pa.RecordBatch]]:
        first_row = 0
        while file.tell() < whole.size - len(_END_OF_STREAM):
            position = file.tell()
            message = pa.ipc.read_message(file)
            first_row += require_bounded(message, first_row, name)
            yield position, pa.ipc.read_record_batch(message, schema)

    return schema, batches()


def _is_nested(schema: pa.Schema, is_wanted: Callable[[pa.DataType], bool]) -> bool:
    """Whether a type is somewhere in a schema."""

    def inside(kind: pa.DataType) -> bool:
        if is_wanted(kind):
            return True
        return any(inside(kind.field(i).type) for i in range(kind.num_fields))

    return any(inside(field.type) for field in schema)


def _lies_in(array: pa.Array, whole: pa.Buffer) -> bool:
    """Whether the values are a view of the mapped file, not a decompressed or re-aligned copy."""
    values = array.values
    if len(values) == 0 or pa.types.is_null(values.type):
        return True
    address = values.buffers()[1].address
    return bool(whole.address <= address < whole.address + whole.size)
