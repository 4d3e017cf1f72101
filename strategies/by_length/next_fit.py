"""One open pack; it is closed when the next segment does not fit, or when it may hold no more."""

from __future__ import annotations

import numpy as np

from strategies.arrays import Int32Array, Int64Array
from strategies.compiled import kernel
from strategies.contract import Plan, Request, Strategy


def place(request: Request) -> Plan:
    """Plan by next fit in arrival order. O(num_segments). Source: LongAlign, arXiv 2401.18058."""
    return place_in_order(request, np.arange(len(request.lengths), dtype=np.int64))


def place_in_order(request: Request, order: Int64Array) -> Plan:
    """Plan by next fit, taking the segments in a given order. O(num_segments).

    order: a permutation of the segments.  # shape: (num_segments,)
    """
    offsets = _pack_offsets(request.lengths[order], request.capacity, request.most_segments)
    return Plan(segment=order, pack_offsets=offsets)


@kernel
def _pack_offsets(lengths: Int32Array, capacity: int, most_segments: int) -> Int64Array:
    """Return the first segment of each pack, and the end, when packs are filled in the order of the lengths.

    # shape: (num_packs + 1,)
    """
    offsets = np.zeros(lengths.shape[0] + 1, np.int64)
    num_packs = 0
    room = 0
    first = 0
    for i in range(lengths.shape[0]):
        if lengths[i] > room or i - first == most_segments:
            first = i
            offsets[num_packs] = i
            num_packs += 1
            room = capacity
        room -= lengths[i]
    offsets[num_packs] = lengths.shape[0]
    return offsets[: num_packs + 1].copy()


STRATEGY = Strategy(
    name="next-fit",
    place=place,
    summary="one open pack, closed when the next sample does not fit",
    when="to keep neighbours together (with --pack-order plan also the order of packs)",
    least_max_segments=lambda options: 1,
)
