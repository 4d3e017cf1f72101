"""The rows of one split, file after file, and their cut into windows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock

import numpy as np
import pyarrow as pa

from pipeline.base.arrays import list_offsets
from pipeline.base.errors import DataError
from pipeline.reading.mapped import MappedFile
from pipeline.reading.rows import Rows, rows_of
from strategies.arrays import Int64Array

_MOST_WINDOWS = 2  # while shards of one are still written, those of the next begin


@dataclass(frozen=True, kw_only=True)
class Window:
    """A contiguous run of rows that is planned on its own."""

    index: int
    first_row: int
    num_rows: int
    num_tokens: int
    """Before anything is left out."""

    def words(self, split: str) -> str:
        """What messages call it."""
        return f"window {self.index}{f' of {split}' if split else ''}"


class SplitRows:
    """All rows of a split, numbered through its files."""

    def __init__(self, files: list[MappedFile]) -> None:
        self.files = [file for file in files if file.num_rows]
        self._offsets = [0]
        for file in self.files:
            self._offsets.append(self._offsets[-1] + file.num_rows)
        self._windows: dict[Window, Rows] = {}
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[SplitRows], tuple[list[MappedFile]]]:
        return SplitRows, (self.files,)

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return self._offsets[-1]

    def read(self, start: int, stop: int) -> Rows:
        """Address rows start..stop-1. Raises `DataError` for nulls and for columns of different lengths."""
        batches = []
        for file, first in zip(self.files, self._offsets, strict=False):
            begin, end = max(start, first), min(stop, first + file.num_rows)
            if begin < end:
                batches += [(batch, file.columns) for batch in file.batches(begin - first, end - first)]
        return rows_of(batches, lambda row: self.locate(start + row))

    def read_window(self, window: Window) -> Rows:
        """Address a window's rows; the last windows are remembered, as each of their shards needs them."""
        with self._lock:
            if window not in self._windows:
                while len(self._windows) >= _MOST_WINDOWS:
                    del self._windows[next(iter(self._windows))]
                self._windows[window] = self.read(window.first_row, window.first_row + window.num_rows)
            return self._windows[window]

    def files_of(self, window: Window) -> list[MappedFile]:
        """The files that a window's rows lie in."""
        end = window.first_row + window.num_rows
        return [
            file
            for file, first in zip(self.files, self._offsets, strict=False)
            if first < end and window.first_row < first + file.num_rows
        ]

    def sources(self, window: Window) -> tuple[Int64Array, Int64Array]:
        """The raw row of each row of a window, and the turn that ends it. Raises `DataError` for a null."""
        start, stop = window.first_row, window.first_row + window.num_rows
        parts = [(np.empty(0, np.int64), np.empty(0, np.int64))]
        for file, first in zip(self.files, self._offsets, strict=False):
            begin, end = max(start, first), min(stop, first + file.num_rows)
            if begin < end:
                parts.append(file.sources(begin - first, end - first))
        rows, turns = (np.concatenate(column) for column in zip(*parts, strict=True))
        return rows, turns

    def column(self, name: str, start: int, stop: int, way_out: str) -> Iterator[pa.Array]:
        """A column of rows start..stop-1 that is neither tokens nor targets, in pieces.

        Raises `DataError` for a file that has none, ending with `way_out`.
        """
        for file, first in zip(self.files, self._offsets, strict=False):
            begin, end = max(start, first), min(stop, first + file.num_rows)
            if begin >= end:
                continue
            if file.schema.names.count(name) != 1:
                has = ", ".join(file.schema.names)
                raise DataError(f"{file.name}: no column {name!r} to embed (the columns are: {has}); {way_out}")
            for batch in file.batches(begin - first, end - first):
                yield batch.column(batch.schema.get_field_index(name))

    def locate(self, row: int) -> str:
        """Words naming the file of a row, and its number there."""
        i = bisect_right(self._offsets, row) - 1
        return f"{self.files[i].name}, {self.files[i].words_of(row - self._offsets[i])}"

    def column_names(self, row: int) -> tuple[str, str]:
        """The token and target columns of the file that holds `row`."""
        columns = self.files[bisect_right(self._offsets, row) - 1].columns
        return columns.tokens, columns.targets or ""

    def cut(self, most_rows: int, most_tokens: int) -> list[Window]:
        """Windows of at most so many rows and tokens; a row that is longer alone is a window of its own.

        Depends on the rows' lengths only, not on files or record batches.
        """
        windows: list[Window] = []
        first = rows = tokens = 0

        def close() -> None:
            nonlocal first, rows, tokens
            windows.append(Window(index=len(windows), first_row=first, num_rows=rows, num_tokens=tokens))
            first, rows, tokens = first + rows, 0, 0

        for num_rows, num_tokens, lengths in self._batch_lengths():
            if rows + num_rows <= most_rows and tokens + num_tokens <= most_tokens:
                rows += num_rows
                tokens += num_tokens
                continue
            ends = np.cumsum(lengths())
            taken = 0
            while taken < num_rows:
                before = int(ends[taken - 1]) if taken else 0
                fits = int(np.searchsorted(ends, most_tokens - tokens + before, side="right"))
                upto = min(fits, taken + most_rows - rows)
                if upto <= taken and not rows:
                    upto = taken + 1
                if upto > taken:
                    rows += upto - taken
                    tokens += int(ends[upto - 1]) - before
                    taken = upto
                if taken < num_rows:
                    close()
        if rows:
            close()
        return windows

    def _batch_lengths(self) -> Iterator[tuple[int, int, _Lengths]]:
        """Rows, tokens and (on demand) lengths of each record batch."""
        for file in self.files:
            rows, tokens = np.diff(file.row_offsets), np.diff(file.token_offsets)
            for i in range(len(rows)):
                yield int(rows[i]), int(tokens[i]), _Lengths(file, i)


@dataclass(frozen=True)
class _Lengths:
    file: MappedFile
    batch: int

    def __call__(self) -> Int64Array:
        begin, end = int(self.file.row_offsets[self.batch]), int(self.file.row_offsets[self.batch + 1])
        (batch,) = self.file.batches(begin, end)
        return np.diff(list_offsets(batch.column(batch.schema.get_field_index(self.file.columns.tokens))))
