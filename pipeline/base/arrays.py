"""Arrow arrays of integers as views of numpy, and the other way round, without a copy and without pandas."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.base.storage import FileFacts, HashingFile, map_file
from strategies.arrays import Int64Array

Integers = npt.NDArray[Any]
"""A vector of integers of any width."""


def is_list(kind: pa.DataType) -> bool:
    """Whether it is one of the three list types whose values lie end to end."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_list_view(kind: pa.DataType) -> bool:
    """Whether it is one of the two list types whose values may lie in any order."""
    return bool(pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind))


def end_to_end(array: pa.Array) -> pa.Array:
    """A list view as lists whose values lie end to end, in order; any other array as it is."""
    import pyarrow.compute as pc  # noqa: PLC0415 - tens of milliseconds, for some inputs alone

    if not is_list_view(array.type):
        return array
    lengths = as_numpy(pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64()))
    ends = as_arrow(np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]), pa.int64())
    nulls = array.is_null() if array.null_count else None
    return pa.LargeListArray.from_arrays(ends, array.flatten(), mask=nulls)


def list_offsets(array: pa.Array) -> Int64Array:
    """Offsets of each row's values into `array.values`, and the end.  # shape: (num_rows + 1,)"""
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        ends: Int64Array = (np.arange(len(array) + 1, dtype=np.int64) + array.offset) * size
        return ends
    offsets: Int64Array = as_numpy(array.offsets).astype(np.int64, copy=False)
    return offsets


def as_numpy(array: pa.Array) -> Integers:
    """The values of an integer array without nulls, as a view.

    `to_numpy` would do, but imports pandas first where that is installed.
    """
    if not len(array):
        return np.zeros(0, array.type.to_pandas_dtype())
    return np.frombuffer(array.buffers()[1], array.type.to_pandas_dtype())[array.offset : array.offset + len(array)]


def as_arrow(values: Integers, kind: pa.DataType) -> pa.Array:
    """A contiguous vector as an array of the given type, as a view where the type is the vector's own."""
    own = np.ascontiguousarray(values, kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(own), [None, pa.py_buffer(own)])


def save_arrays(path: Path, arrays: Mapping[str, Integers]) -> FileFacts:
    """Write named vectors durably, as an Arrow stream of one row, so that they can be mapped. Raises `OSError`."""
    file = HashingFile(path, is_shared=True)
    try:
        columns = []
        for values in arrays.values():
            kind = pa.from_numpy_dtype(values.dtype)
            offsets = as_arrow(np.array([0, len(values)], np.int64), pa.int64())
            columns.append(pa.LargeListArray.from_arrays(offsets, as_arrow(values, kind)))
        batch = pa.record_batch(columns, names=list(arrays))
        with pa.ipc.new_stream(pa.PythonFile(file, mode="w"), batch.schema) as writer:
            writer.write_batch(batch)
        return file.finish()
    finally:
        file.discard()


def load_arrays(path: Path) -> dict[str, Integers]:
    """What `save_arrays` wrote, as views of the mapped file, which cannot be written to. Raises `OSError`."""
    with map_file(path) as file, pa.ipc.open_stream(file) as reader:
        batch = reader.read_next_batch()
    return {name: as_numpy(column.values) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
