"""Packed rows of other packers as samples: boundaries are taken from the column that tells them.

Tokens do not move: a sample is a piece of the same values under other offsets. Padding stays in the sample beside it,
under its mask, so that it is removed and counted where all padding is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa

from pipeline.base.arrays import Integers, as_arrow
from pipeline.base.errors import DataError
from pipeline.format.columns import SOURCE_ROW
from pipeline.reading.columns import Columns, PackColumn, PackForm
from pipeline.reading.decoding.packs import Lists, lists_of, runs, telling_row, turns, whole_lists
from strategies.arrays import BoolArray, Int64Array

Fault = Callable[[int, str], DataError]
"""(row, what is wrong there) -> the error."""


def telling_column(batches: Iterable[pa.RecordBatch], columns: Columns) -> PackColumn | None:
    """The plainest column that tells of any row that it is a pack; None if none does."""
    found: set[PackColumn] = set()
    for batch in batches:
        for column in columns.packs:
            if column not in found and telling_row(batch, column, columns) is not None:
                found.add(column)
        if columns.packs[0] in found:
            break
    return next((column for column in columns.packs if column in found), None)


def unpacked(
    batch: pa.RecordBatch, columns: Columns, column: PackColumn, where: str, first_row: int
) -> Iterator[pa.RecordBatch]:
    """The samples of packed rows, in pieces of bounded size. Arguments and errors are those of `unpack`."""
    for start, stop in runs(lists_of(batch, columns.tokens).offsets):
        yield unpack(batch.slice(start, stop - start), columns, column, where, first_row + start)


def unpack(batch: pa.RecordBatch, columns: Columns, column: PackColumn, where: str, first_row: int) -> pa.RecordBatch:
    """The samples of packed rows, in order, with `SOURCE_ROW`; a row without tokens is a sample without tokens.

    column: tells where they begin; first_row: the number of the batch's first row in its file.
    Raises `DataError` for a column that contradicts itself or the tokens.
    """

    def fault(row: int, what: str) -> DataError:
        return DataError(f"{where}, row {first_row + row}: column {column.name!r} {what}; its samples cannot be told")

    for needed in dict.fromkeys((*columns.names(), column.name)):
        _require_no_null(batch, needed, f"{where}, row ", first_row)
    tokens, told = lists_of(batch, columns.tokens), lists_of(batch, column.name)
    mask = None if columns.attention is None else lists_of(batch, columns.attention)
    targets = None if columns.targets is None else lists_of(batch, columns.targets)
    for name, other in ((columns.attention, mask), (columns.targets, targets)):
        _require_as_long(tokens, other, name, columns.tokens, f"{where}, row ", first_row)
    kept = None if mask is None else mask.values != 0
    begins = _begins(tokens, told, kept, column.form, fault)
    offsets, rows = _samples(tokens.offsets, begins, kept)
    arrays = [_lists(tokens.values, offsets)]
    if targets is not None:
        is_shifted = column.form is PackForm.STARTS and not columns.targets_are_labels
        arrays.append(_lists(_unshifted(targets.values, offsets) if is_shifted else targets.values, offsets))
    if kept is not None:
        arrays.append(_lists(kept.astype(np.uint8), offsets))
    return pa.record_batch([*arrays, as_arrow(rows + first_row, pa.int64())], names=[*columns.names(), SOURCE_ROW])


def _require_no_null(batch: pa.RecordBatch, name: str, where: str, first_row: int) -> None:
    array = whole_lists(batch, name)
    for row in np.flatnonzero(np.asarray(array.is_null()))[:1]:
        raise DataError(f"{where}{first_row + row}: column {name!r} is null")
    values = array.flatten()
    if values.null_count:
        at = int(np.flatnonzero(np.asarray(values.is_null()))[0])
        row = int(np.searchsorted(lists_of(batch, name).offsets, at, side="right")) - 1
        raise DataError(f"{where}{first_row + row}: column {name!r} holds a null among its values")


def _require_as_long(
    tokens: Lists, other: Lists | None, name: str | None, called: str, where: str, first_row: int
) -> None:
    """Raise `DataError` unless a column has a value for each token."""
    if other is None:
        return
    length, own = np.diff(tokens.offsets), np.diff(other.offsets)
    for row in np.flatnonzero(length != own)[:1]:
        raise DataError(
            f"{where}{first_row + row}: column {name!r} has {own[row]} values, but {called!r} has {length[row]}"
        )


def _begins(tokens: Lists, told: Lists, kept: BoolArray | None, form: PackForm, fault: Fault) -> Int64Array:
    """Where segments begin among the tokens of all rows, in order; every row that has tokens begins one."""
    firsts = tokens.offsets[:-1]
    if form.is_per_token:
        begins = _turns(tokens, told, kept, form, fault)
    elif form is PackForm.LENGTHS:
        begins = _after_lengths(tokens, told, kept, fault)
    else:
        begins = _at_starts(tokens, told, kept, form, fault)
    every = np.unique(np.concatenate([firsts, begins]))
    found: Int64Array = every[every < tokens.offsets[-1]]
    return found


def _turns(tokens: Lists, told: Lists, kept: BoolArray | None, form: PackForm, fault: Fault) -> Int64Array:
    """By a value for each token."""
    length, own = np.diff(tokens.offsets), np.diff(told.offsets)
    for row in np.flatnonzero(length != own)[:1]:
        raise fault(int(row), f"has {own[row]} values for {length[row]} tokens")
    begins = turns(told, kept, form)
    at = np.arange(len(told.values)) if kept is None else np.flatnonzero(kept)
    values, rows = told.values[at].astype(np.int64), told.rows[at]
    is_first = np.ones(len(at), bool)
    is_first[1:] = rows[1:] != rows[:-1]
    step = np.diff(values, prepend=0)
    if form is PackForm.INDICES:
        wrong = ~is_first & (step < 0)
        wanted = "the numbers of segments only rise"
    elif form is PackForm.RUNS:
        wrong = ~is_first & (step < 0) & (values <= 0)
        wanted = "what falls to 0 looks like padding, of which an attention mask (--column attention_mask=NAME) tells"
    else:
        begun = is_first.copy()
        begun[np.searchsorted(at, begins)] = True
        wrong = np.where(begun, values != values[is_first][np.cumsum(is_first) - 1], step != 1)
        wanted = "a position is the next one, or the first of the row where a sample begins"
    for i in np.flatnonzero(wrong)[:1]:
        row = int(rows[i])
        raise fault(row, f"holds {values[i]} at position {at[i] - told.offsets[row]}, and {wanted}")
    return begins


def _after_lengths(tokens: Lists, told: Lists, kept: BoolArray | None, fault: Fault) -> Int64Array:
    """By the length of each segment."""
    lengths = told.values.astype(np.int64)
    for i in np.flatnonzero(lengths < 0)[:1]:
        raise fault(int(told.rows[i]), f"holds the length {lengths[i]}")
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    sums = ends[told.offsets[1:]] - ends[told.offsets[:-1]]
    _require_end(
        tokens, sums, kept, lambda row, size: fault(row, f"sums to {sums[row]}, but the row has {size} tokens")
    )
    base = (tokens.offsets[:-1] - ends[told.offsets[:-1]])[told.rows]
    return np.concatenate([ends[:-1] + base, tokens.offsets[:-1] + sums])


def _at_starts(tokens: Lists, told: Lists, kept: BoolArray | None, form: PackForm, fault: Fault) -> Int64Array:
    """By where each segment begins, and for `OFFSETS` where the last one ends."""
    starts, rows = told.values.astype(np.int64), told.rows
    firsts, size = told.offsets[:-1], np.diff(tokens.offsets)
    for row in np.flatnonzero((np.diff(told.offsets) == 0) & (size > 0))[:1]:
        raise fault(int(row), "is empty")
    is_first = np.zeros(len(starts), bool)
    is_first[firsts[firsts < told.offsets[1:]]] = True
    step = np.diff(starts, prepend=0)
    for i in np.flatnonzero(np.where(is_first, starts != 0, step < 0))[:1]:
        what = "begins with" if is_first[i] else f"goes from {starts[i - 1]} to"
        raise fault(int(rows[i]), f"{what} {starts[i]}, and segments begin one after the other, the first at 0")
    for i in np.flatnonzero(starts > size[rows])[:1]:
        raise fault(int(rows[i]), f"holds {starts[i]}, but the row has {size[rows[i]]} tokens")
    if form is PackForm.OFFSETS:
        has_any = np.diff(told.offsets) > 0
        ends = np.zeros(len(size), np.int64)
        ends[has_any] = starts[told.offsets[1:][has_any] - 1]
        _require_end(tokens, ends, kept, lambda row, size: fault(row, f"ends at {ends[row]}, and the tokens at {size}"))
    return tokens.offsets[:-1][rows] + starts


def _require_end(
    tokens: Lists, ends: Int64Array, kept: BoolArray | None, fault: Callable[[int, int], DataError]
) -> None:
    """Raise what `fault` gives for a row and its tokens, unless the segments end where the row does.

    Behind them there may be padding. ends: where those of each row end.  # shape: (num_rows,)
    """
    size = np.diff(tokens.offsets)
    wrong = ends != size
    if kept is not None and wrong.any():
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
        behind = before[tokens.offsets[1:]] - before[tokens.offsets[:-1] + np.minimum(ends, size)]
        wrong = (ends > size) | (behind > 0)
    for row in np.flatnonzero(wrong)[:1]:
        raise fault(int(row), int(size[row]))


def _samples(offsets: Int64Array, begins: Int64Array, kept: BoolArray | None) -> tuple[Int64Array, Int64Array]:
    """Where each sample begins among all tokens, and the end; and the row of each.

    offsets: of the rows; begins: of their segments. A segment of nothing but padding joins the one before it, or the
    one after it at the beginning of a row; a row without anything else is one sample.
    """
    if kept is not None:
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
        begins = begins[np.diff(before[np.append(begins, len(kept))]) > 0]
    rows: Int64Array = np.searchsorted(offsets, begins, side="right") - 1
    is_first = np.ones(len(rows), bool)
    is_first[1:] = rows[1:] != rows[:-1]
    begins = np.where(is_first, offsets[rows], begins)
    bare = np.setdiff1d(np.arange(len(offsets) - 1), rows)
    rows, begins = np.concatenate([rows, bare]), np.concatenate([begins, offsets[bare]])
    order = np.argsort(rows, kind="stable")
    return np.append(begins[order], offsets[-1]), rows[order]


def _unshifted(mask: Integers, offsets: Int64Array) -> Integers:
    """A mask that says of each token whether the next one is a target, as one that says it of the token itself.

    Of the first token of a sample nothing is said, and what the last one says is of no token of the sample.
    """
    own = np.zeros_like(mask)
    own[1:] = mask[:-1]
    begins = offsets[:-1]
    own[begins[begins < len(own)]] = 0
    return own


def _lists(values: Integers, offsets: Int64Array) -> pa.Array:
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.LargeListArray.from_arrays(as_arrow(offsets, pa.int64()), as_arrow(values, kind))
