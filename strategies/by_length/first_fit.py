"""Greedy: each segment goes into the oldest pack that has room."""

from __future__ import annotations

import numpy as np

from strategies.arrays import Int32Array, Int64Array
from strategies.by_length.sorting import group_by_pack
from strategies.compiled import kernel
from strategies.contract import Plan, Request, Strategy


def place(request: Request) -> Plan:
    """Plan by first fit in arrival order. O(num_segments log num_packs).

    Source: Johnson, 1974; with `max_segments` Krause, Shen and Schwetman, 1975.
    """
    return place_in_order(request, np.arange(len(request.lengths), dtype=np.int64))


def place_in_order(request: Request, order: Int64Array) -> Plan:
    """Plan by first fit, taking the segments in a given order. O(num_segments log num_packs).

    order: a permutation of the segments.  # shape: (num_segments,)
    """
    pack_of, num_packs = _first_fit(request.lengths, order, request.capacity, request.most_segments)
    segment, offsets = group_by_pack(pack_of, order, num_packs)
    return Plan(segment=segment, pack_offsets=offsets)


@kernel
def _first_fit(lengths: Int32Array, order: Int64Array, capacity: int, most_segments: int) -> tuple[Int32Array, int]:
    """Return the pack of each segment, taken in `order`, and the number of packs.

    A tree over packs finds it; its nodes hold the largest room below them. A pack not opened yet is a leaf with full
    room, so opening needs no case of its own, and one with all the segments it may have is a leaf without room. Of the
    others every two hold more than one capacity together, which bounds the packs and so the tree beforehand.
    """
    total = np.int64(0)
    for length in lengths:
        total += length
    capped = most_segments < lengths.shape[0]
    num_whole = lengths.shape[0] // most_segments if capped else 0
    most_packs = min(lengths.shape[0], 2 * (total // capacity) + 2 + num_whole)
    num_leaves = 1
    while num_leaves < most_packs:
        num_leaves *= 2
    room = np.full(2 * num_leaves, capacity, np.int32)
    size = np.zeros(num_leaves if capped else 0, np.int32)
    pack_of = np.empty(lengths.shape[0], np.int32)
    num_packs = 0
    for i in range(order.shape[0]):
        length = lengths[order[i]]
        node = 1
        while node < num_leaves:
            node *= 2
            if room[node] < length:
                node += 1
        pack = node - num_leaves
        pack_of[i] = pack
        num_packs = max(num_packs, pack + 1)
        room[node] -= length
        if capped:
            size[pack] += 1
            if size[pack] == most_segments:
                room[node] = 0
        while node > 1:
            node //= 2
            largest = max(room[2 * node], room[2 * node + 1])
            if room[node] == largest:
                break
            room[node] = largest
    return pack_of, num_packs


STRATEGY = Strategy(
    name="first-fit",
    place=place,
    summary="each sample into the oldest pack with room",
    when="to keep most neighbours together and still pack well",
    least_max_segments=lambda options: 1,
)
