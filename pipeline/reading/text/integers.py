"""Lines of JSON that hold lists of integers, read by compiled code; docs/decisions.md has what that is worth.

It takes what tokenised rows look like in nearly all files, and nothing else: where a line has anything that is unusual
or wrong, all lines are left to the general parser, which reads what is unusual and says what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.base.arrays import as_arrow
from strategies.arrays import Int32Array, Int64Array, UInt8Array
from strategies.compiled import kernel

_TAB, _LF, _CR, _SPACE, _QUOTE, _PLUS, _COMMA, _MINUS, _DOT = (ord(c) for c in '\t\n\r "+,-.')
_ZERO, _COLON, _OPEN, _SLASH, _CLOSE, _BEGIN, _END = (ord(c) for c in "0:[\\]{}")
_NULL, _TRUE, _FALSE = (np.frombuffer(word, np.uint8) for word in (b"null", b"true", b"false"))
_ESCAPED = np.frombuffer(b'"\\/bfnrt', np.uint8)

_ABSENT, _IS_NULL = -2, -1  # in place of a length
_MOST_DIGITS = 18  # which always fit into 64 bits
_UNUSUAL = -1

_MOST_BYTES = 1 << 25
"""Of lines that are read; room is made for as many values as so much text may hold."""


def integer_lists(block: bytes, columns: Sequence[str], foreign: Sequence[str]) -> pa.RecordBatch | None:
    """Columns of lists of integers of lines of JSON; null in a row that lacks one. None for what is unusual.

    foreign: columns that no row may have. O(bytes), without the interpreter's lock.
    """
    if len(block) > _MOST_BYTES:
        return None
    text = np.frombuffer(block if block.endswith(b"\n") else block + b"\n", np.uint8)
    names = [name.encode() for name in (*columns, *foreign)]
    ends = np.cumsum([len(name) for name in names])
    values = np.empty((len(columns), len(text) // 2), np.int64)  # each has a digit, and a comma or bracket before it
    lengths = np.empty((len(columns), len(text) // 3), np.int32)  # a row is {} and LF at the least
    num_rows = _parse(text, np.frombuffer(b"".join(names), np.uint8), ends, values, lengths)
    if num_rows == _UNUSUAL:
        return None
    arrays = [_lists(values[i], lengths[i, :num_rows]) for i in range(len(columns))]
    return pa.record_batch(arrays, names=list(columns))


def _lists(values: Int64Array, lengths: Int32Array) -> pa.Array:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(np.maximum(lengths, 0), out=offsets[1:])
    mask = pa.array(lengths < 0) if (lengths < 0).any() else None
    whole = as_arrow(values[: offsets[-1]], pa.int64())
    return pa.ListArray.from_arrays(as_arrow(offsets, pa.int32()), whole, mask=mask)


@kernel
def _parse(text: UInt8Array, names: UInt8Array, ends: Int64Array, values: Int64Array, lengths: Int32Array) -> int:
    """Fill `values` and `lengths`, a row for each column; returns the rows, or `_UNUSUAL`.

    text: ends with LF, at which every loop below ends.
    """
    num_columns = lengths.shape[0]
    taken = np.zeros(num_columns, np.int64)
    i, row = 0, 0
    while i < text.shape[0]:
        if text[i] == _LF or _is_space(text[i]):
            i += 1
            continue
        if text[i] != _BEGIN:
            return _UNUSUAL
        for column in range(num_columns):
            lengths[column, row] = _ABSENT
        i = _after_spaces(text, i + 1)
        is_open = text[i] != _END
        while is_open:
            if text[i] != _QUOTE:
                return _UNUSUAL
            start = i + 1
            i = start
            while text[i] != _QUOTE:
                if text[i] < _SPACE or text[i] == _SLASH:
                    return _UNUSUAL
                i += 1
            column = _column(text, start, i, names, ends)
            i = _after_spaces(text, i + 1)
            if text[i] != _COLON or column >= num_columns:
                return _UNUSUAL
            i = _after_spaces(text, i + 1)
            if column < 0:
                i = _after_value(text, i)
            elif lengths[column, row] != _ABSENT:
                return _UNUSUAL
            elif text[i] == _OPEN:
                before = taken[column]
                i = _integers(text, i + 1, values[column], taken, column)
                lengths[column, row] = taken[column] - before
            else:
                i = _after_word(text, i, _NULL)
                lengths[column, row] = _IS_NULL
            if i < 0:
                return _UNUSUAL
            i = _after_spaces(text, i)
            is_open = text[i] == _COMMA
            if is_open:
                i = _after_spaces(text, i + 1)
        if text[i] != _END:
            return _UNUSUAL
        i = _after_spaces(text, i + 1)
        if text[i] != _LF:
            return _UNUSUAL
        i += 1
        row += 1
    return row


@kernel
def _is_space(byte: int) -> bool:
    return byte in (_SPACE, _TAB, _CR)


@kernel
def _after_spaces(text: UInt8Array, i: int) -> int:
    while _is_space(text[i]):
        i += 1
    return i


@kernel
def _column(text: UInt8Array, start: int, end: int, names: UInt8Array, ends: Int64Array) -> int:
    """The number of the column that is called text[start:end]; -1 if none is."""
    begin = 0
    for number in range(ends.shape[0]):
        if ends[number] - begin == end - start:
            same = True
            for j in range(end - start):
                same &= text[start + j] == names[begin + j]
            if same:
                return number
        begin = ends[number]
    return -1


@kernel
def _integers(text: UInt8Array, i: int, values: Int64Array, taken: Int64Array, column: int) -> int:
    """Read integers up to the end of their list, behind which is returned; -1 for anything else."""
    count = taken[column]
    i = _after_spaces(text, i)
    if text[i] == _CLOSE:
        return i + 1
    while True:
        is_negative = text[i] == _MINUS
        i += is_negative
        first = i
        value = np.int64(0)
        while _ZERO <= text[i] <= _ZERO + 9:
            value = 10 * value + np.int64(text[i]) - _ZERO
            i += 1
        if i == first or i - first > _MOST_DIGITS or (text[first] == _ZERO and (is_negative or i - first > 1)):
            return -1
        values[count] = -value if is_negative else value
        count += 1
        i = _after_spaces(text, i)
        if text[i] == _CLOSE:
            taken[column] = count
            return i + 1
        if text[i] != _COMMA:
            return -1
        i = _after_spaces(text, i + 1)


@kernel
def _after_value(text: UInt8Array, i: int) -> int:
    """Behind a value, of which a list holds no lists or objects; -1 for anything else."""
    if text[i] != _OPEN:
        return _after_plain(text, i)
    i = _after_spaces(text, i + 1)
    if text[i] == _CLOSE:
        return i + 1
    while True:
        i = _after_plain(text, i)
        if i < 0:
            return -1
        i = _after_spaces(text, i)
        if text[i] == _CLOSE:
            return i + 1
        if text[i] != _COMMA:
            return -1
        i = _after_spaces(text, i + 1)


@kernel
def _after_plain(text: UInt8Array, i: int) -> int:
    """Behind a text, a number, or a word; -1 for anything else."""
    if text[i] == _QUOTE:
        return _after_text(text, i + 1)
    if text[i] == _NULL[0]:
        return _after_word(text, i, _NULL)
    if text[i] == _TRUE[0]:
        return _after_word(text, i, _TRUE)
    if text[i] == _FALSE[0]:
        return _after_word(text, i, _FALSE)
    return _after_number(text, i)


@kernel
def _after_word(text: UInt8Array, i: int, word: UInt8Array) -> int:
    for j in range(len(word)):
        if text[i + j] != word[j]:
            return -1
    return i + len(word)


@kernel
def _after_text(text: UInt8Array, i: int) -> int:
    """Behind a text's closing quote; -1 where it holds a character by its number, as lone surrogates are written."""
    while text[i] != _QUOTE:
        if text[i] < _SPACE:
            return -1
        if text[i] == _SLASH:
            i += 1
            is_known = False
            for j in range(len(_ESCAPED)):
                is_known |= text[i] == _ESCAPED[j]
            if not is_known:
                return -1
        i += 1
    return i + 1


@kernel
def _after_number(text: UInt8Array, i: int) -> int:
    i += text[i] == _MINUS
    start = i
    i = _after_digits(text, i)
    if i == start or (text[start] == _ZERO and i - start > 1):
        return -1
    if text[i] == _DOT:
        start = i + 1
        i = _after_digits(text, start)
        if i == start:
            return -1
    if text[i] == 101 or text[i] == 69:  # e and E
        i += 1
        i += text[i] == _PLUS or text[i] == _MINUS
        start = i
        i = _after_digits(text, start)
        if i == start:
            return -1
    return i


@kernel
def _after_digits(text: UInt8Array, i: int) -> int:
    while _ZERO <= text[i] <= _ZERO + 9:
        i += 1
    return i
