"""Columns that nobody reads: in how many rows they have content, told without making Python objects of it.

What is heavy is not decoded either: of a column of large values in parquet the lightest part is read that tells, or,
where every part is heavy, the file's own count of nulls is taken.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.base.arrays import is_list, is_list_view, list_offsets

if TYPE_CHECKING:
    import pyarrow.parquet as pq


_LIGHT = 1 << 15  # bytes a row
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)


def unread_rows(batch: pa.RecordBatch, read: Collection[str]) -> Counter[str]:
    """Column -> the rows in which it has content, of the columns that are not read and have any."""
    found: Counter[str] = Counter()
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name not in read:
            found[name] += rows_with_content(column)
    return +found


def rows_with_content(array: pa.Array) -> int:
    """The rows that are not null, and no empty text, list or object."""
    import pyarrow.compute as pc  # noqa: PLC0415 - tens of milliseconds, for some inputs alone

    kind = array.type
    if array.null_count == len(array):
        return 0
    if isinstance(kind, pa.BaseExtensionType):
        return rows_with_content(array.storage)
    if pa.types.is_dictionary(kind):
        return rows_with_content(array.dictionary_decode())
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return rows_with_content(array.cast(pa.large_binary()))
    if pa.types.is_struct(kind):
        fields = array.flatten()
        if not fields or any(not field.null_count for field in fields):
            return len(array) if fields else 0
        return int(pc.sum(functools.reduce(pc.or_, (field.is_valid() for field in fields))).as_py())
    if pa.types.is_map(kind):
        is_there = array.is_valid().to_numpy(zero_copy_only=False)
        return int(np.count_nonzero(np.diff(list_offsets(array))[is_there]))
    if is_list(kind) or is_list_view(kind):
        return _num_above_zero(pc.list_value_length(array))
    if any(is_of(kind) for is_of in _TEXTS):
        return _num_above_zero(pc.binary_length(array))
    return int(len(array) - array.null_count)


def _num_above_zero(lengths: pa.Array) -> int:
    import pyarrow.compute as pc  # noqa: PLC0415 - tens of milliseconds, for some inputs alone

    return int(pc.sum(pc.greater(lengths, 0)).as_py() or 0)


def light_parts(metadata: pq.FileMetaData, read: Collection[str]) -> tuple[list[str], Counter[str]]:
    """What to read of the columns of a parquet file that nobody reads, to tell in how many rows they have content.

    metadata: its footer.

    Returns paths of columns or parts of them, and, of columns that are heavy in all parts, their rows.
    """
    names = metadata.schema.to_arrow_schema().names
    parts: dict[str, dict[str, int]] = {name: {} for name in names if name not in read}
    by_path = {metadata.schema.column(number).path: number for number in range(metadata.num_columns)}
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    for name, sizes in parts.items():
        for path, number in by_path.items():
            if path == name or path.startswith(f"{name}."):
                sizes[path] = sum(group.column(number).total_uncompressed_size for group in groups)
    light: list[str] = []
    heavy: Counter[str] = Counter()
    most = _LIGHT * metadata.num_rows
    for name, sizes in parts.items():
        if not sizes:
            continue
        lightest = min(sizes, key=lambda path: (sizes[path], path))
        if sum(sizes.values()) <= most:
            light += sizes
        elif sizes[lightest] <= most:
            light.append(lightest)
        else:
            statistics = [group.column(by_path[lightest]).statistics for group in groups]
            heavy[name] = metadata.num_rows - sum(one.null_count or 0 for one in statistics if one is not None)
    return light, heavy
