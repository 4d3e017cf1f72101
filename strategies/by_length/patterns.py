"""Packs filled one after the other, tokens and segments in balance: for packs that may hold so many segments only.

1. A pack begins with the longest segment left.
2. As long as tokens are what needs the most packs, the longest segment follows that fits.
3. Once segments need as many packs, each has to hold all that it may: the longest segment follows that leaves room for
   as many of the shortest as are still missing. So the longest meet the shortest, what is left draws together round its
   mean, and tokens and segments run out together.

Segments of one length are alike. A pattern, the contents of a pack by length, is used as often as there are segments
for it, and until the balance between tokens and segments tips.
"""

from __future__ import annotations

import numpy as np

from strategies.arrays import Int32Array, Int64Array, UInt64Array
from strategies.by_length.room_set import insert, remove, room_set, smallest_from
from strategies.compiled import kernel


def fill_by_patterns(
    lengths: Int32Array, order: Int64Array, capacity: int, max_segments: int
) -> tuple[Int64Array, Int64Array]:
    """Return the two arrays of a plan whose packs hold at most so many segments.

    order: the segments by length descending.  # shape: (num_segments,)

    O(num_segments + capacity). Source: the sequential heuristic of cutting stock (Haessler, 1975); what fills a pack is
    ours.  # shapes: (num_segments,), (num_packs + 1,)
    """
    lengths_left, levels = room_set(capacity + 1)
    return _fill(lengths, order, capacity, max_segments, lengths_left, levels)


@kernel
def _fill(
    lengths: Int32Array,
    order: Int64Array,
    capacity: int,
    max_segments: int,
    lengths_left: UInt64Array,
    levels: Int64Array,
) -> tuple[Int64Array, Int64Array]:
    """Fill packs until no segment is left; `lengths_left` holds capacity - length, so that it finds the longest."""
    num_left = lengths.shape[0]
    tokens_left = np.int64(0)
    left = np.zeros(capacity + 1, np.int64)  # segments of each length
    for length in lengths:
        left[length] += 1
        tokens_left += length
    next_of = np.zeros(capacity + 1, np.int64)  # where in `order` the next segment of each length stands
    at = 0
    for length in range(capacity, 0, -1):
        next_of[length] = at
        at += left[length]
        if left[length]:
            insert(lengths_left, levels, capacity - length)

    segment = np.empty(num_left, np.int64)
    offsets = np.empty(num_left + 1, np.int64)
    offsets[0] = 0
    num_packs = 0
    filled = 0
    part = np.empty((min(max_segments, num_left), 2), np.int64)  # lengths in the pattern, and segments of each
    shortest, longest = 1, capacity
    even = capacity / max_segments  # tokens a segment at which both need as many packs
    while num_left:
        while left[longest] == 0:
            longest -= 1
        while left[shortest] == 0:
            shortest += 1
        surplus = tokens_left - num_left * even
        room, slots = capacity, max_segments
        num_parts = 0
        length = longest
        while True:
            each = min(left[length], slots, room // length)
            if surplus < 0 and length > shortest:
                spare = room - length - (slots - 1) * shortest
                each = min(each, max(0, spare // (length - shortest)) + 1)
            part[num_parts, 0], part[num_parts, 1] = length, each
            num_parts += 1
            room -= each * length
            slots -= each
            num_left -= each
            left[length] -= each
            if left[length] == 0:
                remove(lengths_left, levels, capacity - length)
            if slots == 0 or num_left == 0:
                break
            while left[shortest] == 0:
                shortest += 1
            if room < shortest:
                break
            most = room if surplus >= 0 else max(shortest, room - (slots - 1) * shortest)
            length = capacity - smallest_from(lengths_left, levels, capacity - most)

        tokens, segments = capacity - room, max_segments - slots
        again = num_left
        for p in range(num_parts):
            again = min(again, left[part[p, 0]] // part[p, 1])
        tips = tokens - segments * even
        if tips != 0 and (tips < 0) == (surplus < 0):
            again = min(again, max(0, int(surplus / tips) - 1))
        num_left -= again * segments
        tokens_left -= (1 + again) * tokens
        for p in range(num_parts):
            length = part[p, 0]
            if again:
                left[length] -= again * part[p, 1]
                if left[length] == 0:
                    remove(lengths_left, levels, capacity - length)
        for _ in range(1 + again):
            for p in range(num_parts):
                length, each = part[p, 0], part[p, 1]
                for i in range(next_of[length], next_of[length] + each):
                    segment[filled] = order[i]
                    filled += 1
                next_of[length] += each
            num_packs += 1
            offsets[num_packs] = filled
    return segment, offsets[: num_packs + 1].copy()
