"""Sorted bins: longest segments first, each into the fullest pack with room.

Segments of one length are alike, and so are packs with the same room, so whole runs of packs are filled at once: when
every pack with room r takes floor(r / l) segments of length l, its new room is below l, which is exactly what placing
them one by one does. Packs opened together stay together as a run (first pack, number of packs) until a shorter class
ends inside it, so the work is O(runs touched), and the only pass over all segments is the final grouping. Among packs
with the same room the oldest is taken.

Where a pack would hold more segments than it may, packs are filled by patterns instead.
"""

from __future__ import annotations

import numpy as np

from strategies.arrays import Int32Array, Int64Array, UInt64Array
from strategies.by_length.patterns import fill_by_patterns
from strategies.by_length.room_set import insert, remove, room_set, smallest_from
from strategies.by_length.sorting import longest_first
from strategies.compiled import kernel
from strategies.contract import Plan, Request, Strategy


def place(request: Request) -> Plan:
    """Plan by best fit decreasing; by their lengths the packs are those of placing one segment at a time.

    Where that would break `max_segments`, the packs are those of `fill_by_patterns`.
    O(num_segments + capacity + runs). Source: arXiv 2404.10830; class-wise placement is ours.
    """
    order = longest_first(request.lengths, request.capacity)
    words, levels = room_set(request.capacity + 1)
    placements, num_packs = _fill_runs(request.lengths, request.capacity, words, levels)
    offsets = _pack_offsets(placements, num_packs)
    if (np.diff(offsets) > request.most_segments).any():
        segment, offsets = fill_by_patterns(request.lengths, order, request.capacity, request.most_segments)
    else:
        segment = _group_runs(order, placements, offsets)
    return Plan(segment=segment, pack_offsets=offsets)


@kernel
def _fill_runs(lengths: Int32Array, capacity: int, words: UInt64Array, levels: Int64Array) -> tuple[Int64Array, int]:
    """Return the placements, longest class first, and the number of packs.

    Each placement is (first pack, number of packs, segments that each of them takes).  # shape: (num_placements, 3)
    """
    placements = np.empty((1024, 3), np.int64)
    num_placements = 0
    # Runs (first pack, packs, next run) with the same room are linked in the order of their packs.
    run = np.empty((1024, 3), np.int64)
    num_runs = 0
    unused = -1
    head = np.full(capacity + 1, -1, np.int64)
    tail = np.full(capacity + 1, -1, np.int64)
    num_packs = 0

    class_size = np.zeros(capacity + 1, np.int64)
    for length in lengths:
        class_size[length] += 1
    for length in range(capacity, 0, -1):
        left = class_size[length]
        while left > 0:
            room = smallest_from(words, levels, length)
            opens = room < 0
            if opens:
                room = capacity
                first, packs = num_packs, left
            else:
                first, packs = run[head[room], 0], run[head[room], 1]
            each = room // length
            if packs * each > left:
                # Whole packs first; what remains goes into one more pack on the next turn.
                packs = left // each
                if packs == 0:
                    packs, each = 1, left
            left -= packs * each

            if opens:
                num_packs += packs
            else:
                at = head[room]
                run[at, 0] += packs
                run[at, 1] -= packs
                if run[at, 1] == 0:
                    head[room] = run[at, 2]
                    run[at, 2] = unused
                    unused = at
                    if head[room] < 0:
                        remove(words, levels, room)

            if num_placements == placements.shape[0]:
                placements = _double(placements)
            placement = placements[num_placements]
            placement[0], placement[1], placement[2] = first, packs, each
            num_placements += 1

            new_room = room - each * length
            if new_room == 0:
                continue
            if head[new_room] < 0:
                insert(words, levels, new_room)
                before = -1
            elif run[tail[new_room], 0] < first:
                before = tail[new_room]
            else:
                before = -1
                after = head[new_room]
                while run[after, 0] < first:
                    before, after = after, run[after, 2]
            if before >= 0 and run[before, 0] + run[before, 1] == first:
                run[before, 1] += packs
                continue
            if unused >= 0:
                at = unused
                unused = run[at, 2]
            else:
                if num_runs == run.shape[0]:
                    run = _double(run)
                at = num_runs
                num_runs += 1
            if before >= 0:
                after = run[before, 2]
                run[before, 2] = at
            else:
                after = head[new_room]
                head[new_room] = at
            run[at, 0], run[at, 1], run[at, 2] = first, packs, after
            if after < 0:
                tail[new_room] = at
    return placements[:num_placements].copy(), num_packs


@kernel
def _double(table: Int64Array) -> Int64Array:
    """Return the same rows with room for as many more."""
    grown = np.empty((2 * table.shape[0], 3), np.int64)
    for i in range(table.shape[0]):  # a slice assignment would take two seconds to compile
        grown[i, 0], grown[i, 1], grown[i, 2] = table[i, 0], table[i, 1], table[i, 2]
    return grown


@kernel
def _pack_offsets(placements: Int64Array, num_packs: int) -> Int64Array:
    """Return where each pack begins, and the end.  # shape: (num_packs + 1,)"""
    offsets = np.zeros(num_packs + 1, np.int64)
    for p in range(placements.shape[0]):
        for pack in range(placements[p, 0], placements[p, 0] + placements[p, 1]):
            offsets[pack + 1] += placements[p, 2]
    for pack in range(num_packs):
        offsets[pack + 1] += offsets[pack]
    return offsets


@kernel
def _group_runs(order: Int64Array, placements: Int64Array, offsets: Int64Array) -> Int64Array:
    """Return the segments pack by pack, given that the placements take them in `order`.  # shape: (num_segments,)"""
    cursor = offsets[:-1].copy()
    segment = np.empty(order.shape[0], np.int64)
    i = 0
    for p in range(placements.shape[0]):
        for pack in range(placements[p, 0], placements[p, 0] + placements[p, 1]):
            for _ in range(placements[p, 2]):
                segment[cursor[pack]] = order[i]
                cursor[pack] += 1
                i += 1
    return segment


STRATEGY = Strategy(
    name="best-fit-decreasing",
    place=place,
    summary="longest first, each into the fullest pack with room",
    when="by default: the fewest packs",
    least_max_segments=lambda options: 1,
)
