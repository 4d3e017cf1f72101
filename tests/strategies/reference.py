"""Straightforward packers, one sample at a time, to hold the fast ones against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def next_fit(lengths: Sequence[int], capacity: int, max_segments: int | None = None) -> list[list[int]]:
    packs: list[list[int]] = []
    room = 0
    for i, length in enumerate(lengths):
        if not packs or length > room or len(packs[-1]) == max_segments:
            packs.append([])
            room = capacity
        packs[-1].append(i)
        room -= length
    return packs


def first_fit(lengths: Sequence[int], capacity: int, max_segments: int | None = None) -> list[list[int]]:
    return _fit(lengths, range(len(lengths)), capacity, max_segments, best=False)


def first_fit_decreasing(lengths: Sequence[int], capacity: int, max_segments: int | None = None) -> list[list[int]]:
    return _fit(lengths, _longest_first(lengths), capacity, max_segments, best=False)


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    return _fit(lengths, _longest_first(lengths), capacity, best=True)


def sweep_down(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Greedy packing as arXiv 2410.08081 words it: open with the longest unused, sweep down the rest."""
    unused = _longest_first(lengths)
    packs = []
    while unused:
        room, pack, rest = capacity, [], []
        for i in unused:
            if lengths[i] <= room:
                pack.append(i)
                room -= lengths[i]
            else:
                rest.append(i)
        packs.append(pack)
        unused = rest
    return packs


def fewest_packs(lengths: Sequence[int], capacity: int, max_segments: int | None = None) -> int:
    """The optimum, by branch and bound."""
    order = sorted(lengths, reverse=True)
    best = len(order)

    def place(i: int, packs: list[tuple[int, int]]) -> None:
        nonlocal best
        if len(packs) >= best:
            return
        if i == len(order):
            best = len(packs)
            return
        for k, (room, size) in enumerate(packs):
            if room >= order[i] and size != max_segments and packs[k] not in packs[:k]:
                place(i + 1, [*packs[:k], (room - order[i], size + 1), *packs[k + 1 :]])
        place(i + 1, [*packs, (capacity - order[i], 1)])

    place(0, [])
    return best


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


def _fit(
    lengths: Sequence[int], order: Sequence[int], capacity: int, max_segments: int | None = None, *, best: bool
) -> list[list[int]]:
    packs: list[list[int]] = []
    rooms: list[int] = []
    for i in order:
        fitting = [k for k, room in enumerate(rooms) if room >= lengths[i] and len(packs[k]) != max_segments]
        if fitting:
            k = min(fitting, key=lambda k: (rooms[k], k)) if best else fitting[0]
        else:
            k = len(packs)
            packs.append([])
            rooms.append(capacity)
        packs[k].append(i)
        rooms[k] -= lengths[i]
    return packs


def published_walk(cosines: np.ndarray[Any, Any], threshold: float) -> tuple[list[int], int]:
    """The order of the published script, and how often it visits sample 0 again because all others are too close.

    From the current sample to the nearest unvisited one whose cosine to each of the last four is at most `threshold`;
    where there is none, sample 0 is appended once more, and one sample is never visited.
    """
    num = len(cosines)
    order, left, again = [0], set(range(1, num)), 0
    while len(order) < num:
        by_nearness = sorted(left, key=lambda i: (-cosines[order[-1], i], i))
        chosen = next((i for i in by_nearness if all(cosines[i, j] <= threshold for j in order[-4:])), None)
        if chosen is None:
            order.append(0)
            again += 1
        else:
            order.append(chosen)
            left.remove(chosen)
    return order, again
