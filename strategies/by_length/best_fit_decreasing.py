"""Sorted bins: longest segments first, each into the fullest pack with room.

Segments of one length are alike, and so are packs with the same room, so whole runs of packs are filled
at once: when every pack with room r takes floor(r / l) segments of length l, its new room is below l,
which is exactly what placing them one by one does. Packs opened together stay together as a run
(first pack, number of packs) until a shorter class ends inside it, so the work is O(runs touched), and
the only pass over all segments is the final grouping. Among packs with the same room the oldest is taken.
"""

from __future__ import annotations

import numpy as np

from strategies.by_length.room_set import Levels, Words, insert, remove, room_set, smallest_from
from strategies.by_length.sorting import longest_first
from strategies.compiled import kernel
from strategies.contract import Int32Array, Int64Array, Plan, Request, Strategy


def place(request: Request) -> Plan:
    """Best fit decreasing, the same packs by length as one sample at a time.

    O(num_segments + capacity + runs). Source: arXiv 2404.10830; class-wise placement is ours.
    """
    order = longest_first(request.lengths, request.capacity)
    words, levels = room_set(request.capacity + 1)
    runs, num_packs = _fill_runs(request.lengths, request.capacity, words, levels)
    segment, offsets = _group_runs(order, runs, num_packs)
    return Plan(segment=segment, pack_offsets=offsets)


@kernel
def _fill_runs(lengths: Int32Array, capacity: int, words: Words, levels: Levels) -> tuple[Int64Array, int]:
    """Placements, longest class first: rows (first pack, packs, segments for each of them)."""
    placed = np.empty((1024, 3), np.int64)
    num_placed = 0
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

            if num_placed == placed.shape[0]:
                placed = _doubled(placed)
            placed[num_placed, 0], placed[num_placed, 1], placed[num_placed, 2] = first, packs, each
            num_placed += 1

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
                    run = _doubled(run)
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
    return placed[:num_placed].copy(), num_packs


@kernel
def _doubled(table: Int64Array) -> Int64Array:
    """The same rows with room for as many more."""
    grown = np.empty((2 * table.shape[0], 3), np.int64)
    for i in range(table.shape[0]):  # a slice assignment would take two seconds to compile
        grown[i, 0], grown[i, 1], grown[i, 2] = table[i, 0], table[i, 1], table[i, 2]
    return grown


@kernel
def _group_runs(order: Int64Array, runs: Int64Array, num_packs: int) -> tuple[Int64Array, Int64Array]:
    """The plan's two arrays from the placements."""
    offsets = np.zeros(num_packs + 1, np.int64)
    for r in range(runs.shape[0]):
        for pack in range(runs[r, 0], runs[r, 0] + runs[r, 1]):
            offsets[pack + 1] += runs[r, 2]
    for pack in range(num_packs):
        offsets[pack + 1] += offsets[pack]
    cursor = offsets[:-1].copy()
    segment = np.empty(order.shape[0], np.int64)
    i = 0
    for r in range(runs.shape[0]):
        for pack in range(runs[r, 0], runs[r, 0] + runs[r, 1]):
            for _ in range(runs[r, 2]):
                segment[cursor[pack]] = order[i]
                cursor[pack] += 1
                i += 1
    return segment, offsets


STRATEGY = Strategy(
    name="best-fit-decreasing",
    place=place,
    summary="longest first, each into the fullest pack with room",
    when="by default: the fewest packs",
)
