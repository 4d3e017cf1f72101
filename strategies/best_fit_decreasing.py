"""Sorted bins: longest segments first, each into the fullest pack with room.

Segments of one length are alike, and so are packs with the same room, so whole runs of packs are filled
at once: when every pack with room r takes floor(r / l) segments of length l, its new room is below l,
which is exactly what placing them one by one does. Packs opened together stay together as a run
(first pack, number of packs) until a shorter class ends inside it, so the work is O(runs touched), and
the only pass over all segments is the final grouping.
"""

from __future__ import annotations

import numpy as np

from strategies.compiled import kernel
from strategies.contract import Int32Array, Int64Array, Plan, Request, Strategy
from strategies.room_set import Levels, Words, insert, remove, room_set, smallest_from
from strategies.sorting import longest_first


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
    # Runs of packs with the same room form a linked list from `head[room]`; row 2 links to the next.
    node = np.empty((1024, 3), np.int64)
    num_nodes = 0
    free_node = -1
    head = np.full(capacity + 1, -1, np.int64)
    num_packs = 0

    class_size = np.zeros(capacity + 1, np.int64)
    for each_length in lengths:
        class_size[each_length] += 1
    for length in range(capacity, 0, -1):
        left = class_size[length]
        while left > 0:
            room = smallest_from(words, levels, length)
            if room >= 0:
                at = head[room]
                first, packs = node[at, 0], node[at, 1]
                each = room // length
            else:
                room = capacity
                each = room // length
                first, packs = num_packs, -(-left // each)
                num_packs += packs
                at = -1
            if packs * each > left:
                # Whole packs first; what remains goes into one more pack on the next turn.
                packs = left // each
                if packs == 0:
                    packs, each = 1, left
            if at >= 0:
                node[at, 0] += packs
                node[at, 1] -= packs
                if node[at, 1] == 0:
                    head[room] = node[at, 2]
                    node[at, 2] = free_node
                    free_node = at
                    if head[room] < 0:
                        remove(words, levels, room)
            else:
                num_packs = first + packs

            if num_placed == placed.shape[0]:
                grown = np.empty((2 * num_placed, 3), np.int64)
                grown[:num_placed] = placed
                placed = grown
            placed[num_placed, 0], placed[num_placed, 1], placed[num_placed, 2] = first, packs, each
            num_placed += 1
            left -= packs * each

            new_room = room - each * length
            if new_room > 0:
                if free_node >= 0:
                    at = free_node
                    free_node = node[at, 2]
                else:
                    if num_nodes == node.shape[0]:
                        more = np.empty((2 * num_nodes, 3), np.int64)
                        more[:num_nodes] = node
                        node = more
                    at = num_nodes
                    num_nodes += 1
                if head[new_room] < 0:
                    insert(words, levels, new_room)
                node[at, 0], node[at, 1], node[at, 2] = first, packs, head[new_room]
                head[new_room] = at
    return placed[:num_placed].copy(), num_packs


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
