"""Counting sorts: lengths are small integers, so sorting and grouping are two passes each."""

from __future__ import annotations

import numpy as np

from strategies.arrays import Int32Array, Int64Array
from strategies.compiled import kernel


@kernel
def longest_first(lengths: Int32Array, capacity: int) -> Int64Array:
    """Return the segments by length descending, equal lengths in arrival order.

    O(num_segments + capacity).  # shape: (num_segments,)
    """
    cursor = np.zeros(capacity + 2, np.int64)
    for length in lengths:
        cursor[capacity - length + 1] += 1
    for k in range(1, capacity + 2):
        cursor[k] += cursor[k - 1]
    order = np.empty(lengths.shape[0], np.int64)
    for i in range(lengths.shape[0]):
        k = capacity - lengths[i]
        order[cursor[k]] = i
        cursor[k] += 1
    return order


@kernel
def group_by_pack(pack_of: Int32Array, order: Int64Array, num_packs: int) -> tuple[Int64Array, Int64Array]:
    """Return the plan's two arrays, given that segment `order[i]` goes into pack `pack_of[i]`.

    Inside a pack the segments stand as in `order`. O(num_segments + num_packs).
    # shapes: (num_segments,), (num_packs + 1,)
    """
    offsets = np.zeros(num_packs + 1, np.int64)
    for pack in pack_of:
        offsets[pack + 1] += 1
    for pack in range(num_packs):
        offsets[pack + 1] += offsets[pack]
    cursor = offsets[:-1].copy()
    segment = np.empty(order.shape[0], np.int64)
    for i in range(order.shape[0]):
        pack = pack_of[i]
        segment[cursor[pack]] = order[i]
        cursor[pack] += 1
    return segment, offsets
