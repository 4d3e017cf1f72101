"""Are rows packs of several samples? The columns tell by which packers say where the samples of a row begin.

Everything here goes over vectors: of whole columns of short lists, or of so many tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.base.arrays import Integers, as_numpy, end_to_end, is_list, is_list_view, list_offsets
from pipeline.base.errors import DataError
from pipeline.reading.columns import Columns, PackColumn, PackForm
from strategies.arrays import BoolArray, Int64Array

_RUN_VALUES = 1 << 19  # looked at together: what is computed of them stays in the cache


@dataclass(frozen=True)
class Lists:
    """A column of integer lists."""

    values: Integers
    """The values of all rows, end to end.  # shape: (num_values,)"""

    offsets: Int64Array
    """Where the values of each row begin, and the end.  # shape: (num_rows + 1,)"""

    @property
    def rows(self) -> Int64Array:
        """The row of each value.  # shape: (num_values,)"""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def part(self, start: int, stop: int) -> Lists:
        """Rows start..stop-1."""
        begin, end = self.offsets[start], self.offsets[stop]
        return Lists(self.values[begin:end], self.offsets[start : stop + 1] - begin)


def lists_of(batch: pa.RecordBatch, name: str) -> Lists:
    """A column of a record batch; a null counts as an empty list, or as 1 among values."""
    import pyarrow.compute as pc  # noqa: PLC0415 - tens of milliseconds, for some inputs alone

    array = whole_lists(batch, name)
    if pa.types.is_null(array.type):
        return Lists(np.zeros(0, np.int64), np.zeros(len(array) + 1, np.int64))
    if array.null_count:
        array = pc.fill_null(array.cast(pa.large_list(array.type.value_type)), [])
    offsets = list_offsets(array)
    values = array.values.slice(offsets[0], offsets[-1] - offsets[0])
    if pa.types.is_null(values.type):
        return Lists(np.ones(len(values), np.int64), offsets - offsets[0])
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    return Lists(as_numpy(pc.fill_null(values, 1) if values.null_count else values), offsets - offsets[0])


def whole_lists(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column of lists whose values lie end to end; of lists of lists, as batches of one row leave them, the first."""
    array = end_to_end(batch.column(batch.schema.get_field_index(name)))
    array.validate(full=True)
    inner = None if pa.types.is_null(array.type) else array.type.value_type
    if inner is None or not (is_list(inner) or is_list_view(inner)):
        return array
    offsets = list_offsets(array)
    is_bare = np.asarray(array.is_null()) | (np.diff(offsets) == 0)
    return end_to_end(array.values.take(pa.array(offsets[:-1], mask=is_bare)))


def refuse_packs(batch: pa.RecordBatch, columns: Columns, where: str, first_row: int) -> None:
    """Raise `DataError` if a row is a pack. first_row: the number of the first one in its file."""
    for column in columns.packs:
        row = telling_row(batch, column, columns)
        if row is not None:
            raise DataError(
                f"{where}, row {first_row + row}: this is a packed dataset (column {column.name!r} tells); packing it"
                " again would lose where its samples begin; --unpack takes the boundaries from it, and if the rows are"
                " no packs, leave that column out"
            )


def telling_row(batch: pa.RecordBatch, column: PackColumn, columns: Columns) -> int | None:
    """The first row of which a column tells that it is a pack; None if it tells of none."""
    if column.is_certain:
        return 0 if batch.num_rows else None
    lists = lists_of(batch, column.name)
    if column.form.is_per_token:
        mask = None if columns.attention is None else lists_of(batch, columns.attention)
        return _first_turn(lists, mask, column.form)
    least = 2 if column.form is PackForm.OFFSETS else 1
    found = np.flatnonzero(np.diff(lists.offsets) > least)
    return int(found[0]) if len(found) else None


def _first_turn(lists: Lists, mask: Lists | None, form: PackForm) -> int | None:
    """The first row of several segments, by a value for each token."""
    for start, stop in runs(lists.offsets):
        part = lists.part(start, stop)
        if form is PackForm.INDICES and (not len(part.values) or part.values.max() <= 1):
            continue
        kept = None
        if mask is not None and np.array_equal(mask.offsets, lists.offsets):
            kept = mask.part(start, stop).values != 0
        begins = turns(part, kept, form)
        if len(begins):
            return start + int(np.searchsorted(part.offsets, begins[0], side="right")) - 1
    return None


def runs(offsets: Int64Array) -> Iterator[tuple[int, int]]:
    """Consecutive runs of rows, first and end, that are looked at together; a single row may be longer."""
    start, num_rows = 0, len(offsets) - 1
    while start < num_rows:
        upto = int(np.searchsorted(offsets, offsets[start] + _RUN_VALUES, side="right")) - 1
        yield start, (stop := min(num_rows, max(start + 1, upto)))
        start = stop


def turns(lists: Lists, kept: BoolArray | None, form: PackForm) -> Int64Array:
    """Where a segment begins that is not the first of its row.  # shape: (num_turns,)

    lists: a value for each token, a position or the number of a segment; kept: which tokens are no padding, None for
    all.
    """
    is_turn = _is_turn(lists.values, form)
    firsts = lists.offsets[1:-1]
    is_turn[firsts[(firsts > 0) & (firsts < len(lists.values))] - 1] = False
    begins: Int64Array = np.flatnonzero(is_turn) + 1
    if kept is not None and len(begins) and not kept.all():
        at, rows = np.flatnonzero(kept), lists.rows[kept]
        begins = at[1:][_is_turn(lists.values[kept], form) & (rows[1:] == rows[:-1])]
    return begins


def _is_turn(values: Integers, form: PackForm) -> BoolArray:
    """Whether each value but the first is of another segment than the one before."""
    before, after = values[:-1], values[1:]
    if form is not PackForm.POSITIONS:
        changes: BoolArray = before != after
        return changes
    begins: BoolArray = (after < before) | ((after == before) & (after <= 1))  # positions begin at 0, or at 1
    return begins
