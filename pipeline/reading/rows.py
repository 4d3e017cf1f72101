"""Where the integers of each row lie in memory.

Rows stay where the source has them, in memory-mapped files or in spooled ones, as any of eight integer
widths. A row is an address, a width code and a length; compiled code reads through those, so tokens
are never copied before they are gathered into packs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numba import carray, types
from numba.extending import intrinsic

from pipeline.base.arrays import Integers, list_offsets
from pipeline.base.errors import DataError
from pipeline.format.labels import IGNORE
from pipeline.reading.columns import Columns
from strategies.arrays import Int8Array, Int64Array
from strategies.compiled import kernel

_WIDTHS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
_INT8, _INT16, _INT32, _INT64, _UINT8, _UINT16, _UINT32, _UINT64 = (np.empty(0, width) for width in _WIDTHS)
_WIDTH_CODE = {pa.from_numpy_dtype(width): code for code, width in enumerate(_WIDTHS)}
_ITEM_SIZE = np.array([np.dtype(width).itemsize for width in _WIDTHS], np.int64)

NO_TARGET_COLUMN, LABELS, MASK = 0, 1, 2
"""How a row's targets are given: every token is one, by labels, by a mask."""


class Addresses(NamedTuple):
    """Where the values of each row are; columns that a row lacks have address 0. All have shape (num_rows,)."""

    length: Int64Array
    """Tokens of each row, padding included."""

    token: Int64Array
    token_width: Int8Array
    target: Int64Array
    target_width: Int8Array
    target_form: Int8Array
    """NO_TARGET_COLUMN, LABELS or MASK."""

    mask: Int64Array
    """Where the attention mask is."""

    mask_width: Int8Array


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A run of consecutive input rows."""

    addresses: Addresses
    batches: tuple[pa.RecordBatch, ...]
    """Keeps the memory behind the addresses alive."""

    def __len__(self) -> int:
        return len(self.addresses.length)

    def value(self, row: int, column: str, position: int) -> int:
        """One value as the source has it."""
        for batch in self.batches:
            if row < batch.num_rows:
                return int(batch.column(batch.schema.get_field_index(column))[row][position].as_py())
            row -= batch.num_rows
        raise IndexError(row)


def rows_of(batches: list[tuple[pa.RecordBatch, Columns]], locate: Callable[[int], str]) -> Rows:
    """Address the rows of consecutive record batches.

    locate: row within these batches -> words naming its file and row.
    Raises `DataError` for a null, or columns of different lengths in a row.
    """
    parts: list[Addresses] = []
    first = 0
    for batch, columns in batches:
        length, token, token_width = _ragged(batch, columns.tokens, locate, first)
        target = mask = np.zeros(batch.num_rows, np.int64)
        target_width = mask_width = np.zeros(batch.num_rows, np.int8)
        form = NO_TARGET_COLUMN
        if columns.targets is not None:
            other, target, target_width = _ragged(batch, columns.targets, locate, first)
            _require_same(length, other, columns.tokens, columns.targets, locate, first)
            form = LABELS if columns.targets_are_labels else MASK
        if columns.attention is not None:
            other, mask, mask_width = _ragged(batch, columns.attention, locate, first)
            _require_same(length, other, columns.tokens, columns.attention, locate, first)
        target_form = np.full(batch.num_rows, form, np.int8)
        parts.append(Addresses(length, token, token_width, target, target_width, target_form, mask, mask_width))
        first += batch.num_rows
    return Rows(
        addresses=Addresses(*(np.concatenate(column) for column in zip(*parts, strict=True))),
        batches=tuple(batch for batch, _ in batches),
    )


def _require_same(
    length: Int64Array, other: Int64Array, tokens: str, name: str, locate: Callable[[int], str], first: int
) -> None:
    differing = np.flatnonzero(length != other)
    if len(differing):
        row = int(differing[0])
        raise DataError(
            f"{locate(first + row)}: column {name!r} has {other[row]} values, but {tokens!r} has {length[row]}"
        )


def _ragged(
    batch: pa.RecordBatch, name: str, locate: Callable[[int], str], first: int
) -> tuple[Int64Array, Int64Array, Int8Array]:
    """Length, address and width code of each row of a column of integer lists."""
    array = batch.column(batch.schema.get_field_index(name))
    if array.null_count:
        row = int(np.flatnonzero(np.asarray(array.is_null()))[0])
        raise DataError(f"{locate(first + row)}: column {name!r} is null")
    offsets = list_offsets(array)
    values = array.values
    if values.null_count and array.flatten().null_count:
        null = np.flatnonzero(np.asarray(values.is_null())[offsets[0] : offsets[-1]])[0]
        row = int(np.searchsorted(offsets, offsets[0] + null, side="right")) - 1
        raise DataError(f"{locate(first + row)}: column {name!r} holds a null among its values")
    code, start = 0, 0
    if len(values) and not pa.types.is_null(values.type):
        code = _WIDTH_CODE[values.type]
        start = values.buffers()[1].address + values.offset * int(_ITEM_SIZE[code])
    return np.diff(offsets), start + offsets[:-1] * _ITEM_SIZE[code], np.full(len(array), code, np.int8)


def _pointer_code(typing_context: Any, address: Any, like: Any) -> Any:
    """(address, array of some type) -> pointer to values of that type."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(types.int64, like), generate


_pointer = intrinsic(_pointer_code)


@kernel
def _copy(source: Integers, out: Integers) -> None:
    for i in range(out.shape[0]):
        out[i] = source[i]


@kernel
def _copy_capped(source: Integers, out: Integers) -> None:
    """What has no place in int64 becomes its largest value, which is no valid token id either."""
    for i in range(out.shape[0]):
        out[i] = min(source[i], np.uint64(2**63 - 1))


@kernel
def read_values(address: int, width: int, offset: int, out: Integers) -> None:
    """Read `out.shape[0]` values from the `offset`-th on, converted to the type of `out`."""
    count = out.shape[0]
    at = address + offset * _ITEM_SIZE[width]
    if width == 2:
        _copy(carray(_pointer(at, _INT32), (count,)), out)
    elif width == 3:
        _copy(carray(_pointer(at, _INT64), (count,)), out)
    elif width == 0:
        _copy(carray(_pointer(at, _INT8), (count,)), out)
    elif width == 1:
        _copy(carray(_pointer(at, _INT16), (count,)), out)
    elif width == 4:
        _copy(carray(_pointer(at, _UINT8), (count,)), out)
    elif width == 5:
        _copy(carray(_pointer(at, _UINT16), (count,)), out)
    elif width == 6:
        _copy(carray(_pointer(at, _UINT32), (count,)), out)
    else:
        _copy_capped(carray(_pointer(at, _UINT64), (count,)), out)


@kernel
def read_labels(form: int, address: int, width: int, offset: int, tokens: Integers, out: Integers) -> None:
    """Read the labels of tokens, the first of which is the `offset`-th of its row: -100 where one is not a target.

    form, address, width: how the row's targets are given, and where they are; tokens: as `read_values` gives them.
    This alone decides, for all who read rows, what a target is.
    """
    if form == NO_TARGET_COLUMN:
        for i in range(out.shape[0]):
            out[i] = tokens[i]
        return
    read_values(address, width, offset, out)
    if form == MASK:
        for i in range(out.shape[0]):
            out[i] = tokens[i] if out[i] != 0 else IGNORE
