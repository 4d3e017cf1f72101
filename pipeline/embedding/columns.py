"""Vectors that the input brings along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.arrays import is_list
from pipeline.base.engine import LocalEngine
from pipeline.base.errors import DataError
from pipeline.reading.windows import SplitRows
from strategies.arrays import Arrays, Int16Array
from strategies.related.affinity import MOST_DIMENSIONS, quantise

_WAY_OUT = "name the one that holds the vectors with --set column=NAME"


class ColumnEmbedder:
    """Takes a column of vectors as it is."""

    model = None

    def __init__(self, column: str) -> None:
        self.column = column
        self.identity: dict[str, Any] = {"embedder": "column", "column": column, "version": 1}

    def fit(self, splits: Sequence[SplitRows], engine: LocalEngine) -> Arrays:
        """Learn the width, which all vectors must have."""
        for split in splits:
            if split.num_rows:
                return {"width": np.array(self._vectors(split, 0, 1, None).shape[1])}
        return {"width": np.array(0)}

    def embed(self, split: SplitRows, start: int, stop: int, fitted: Arrays) -> Int16Array:
        """Take the vectors of some rows; rows without tokens must have one too."""
        return quantise(self._vectors(split, start, stop, int(fitted["width"])))

    def _vectors(self, split: SplitRows, start: int, stop: int, width: int | None) -> np.ndarray[Any, Any]:
        """Raises `DataError` for a vector that is missing, not finite, zero, or of another width."""
        parts = []
        first = start
        for array in split.column(self.column, start, stop, _WAY_OUT):
            parts.append(self._checked(array, width, lambda row, first=first: split.locate(first + row)))
            first += len(array)
        return np.concatenate(parts)

    def _checked(self, array: pa.Array, width: int | None, locate: Any) -> np.ndarray[Any, Any]:
        kind = array.type
        if not is_list(kind) or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
            raise DataError(f"{locate(0)}: column {self.column!r} has type {kind}; lists of numbers are needed")
        lengths = np.asarray(pc.fill_null(pc.list_value_length(array), -1))
        wanted = int(lengths[0]) if width is None else width
        for row in np.flatnonzero(lengths != wanted)[:1]:
            fault = "is null" if lengths[row] < 0 else f"has {lengths[row]} numbers, others have {wanted}"
            raise DataError(f"{locate(row)}: column {self.column!r} {fault}; every row needs a vector of one width")
        if not 1 <= wanted <= MOST_DIMENSIONS:
            raise DataError(
                f"{locate(0)}: column {self.column!r} has {max(0, wanted)} numbers; vectors of 1 to {MOST_DIMENSIONS}"
                " are supported"
            )
        values = array.flatten()
        numbers = np.asarray(values.cast(pa.float64(), safe=False).fill_null(np.nan)).reshape(-1, wanted)
        for row in np.flatnonzero(~np.isfinite(numbers).all(axis=1))[:1]:
            raise DataError(
                f"{locate(row)}: column {self.column!r} holds a number that is missing or not finite; every row needs a"
                " vector of finite numbers"
            )
        for row in np.flatnonzero(~numbers.any(axis=1))[:1]:
            raise DataError(f"{locate(row)}: column {self.column!r} is a zero vector, which has no direction")
        largest = np.abs(numbers).max(axis=1, keepdims=True)
        scaled: np.ndarray[Any, Any] = (numbers / largest).astype(np.float32)  # which holds less than float64
        return scaled
