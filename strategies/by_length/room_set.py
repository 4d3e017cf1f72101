"""A set of small integers that finds its smallest member not below a bound.

A set is `words`, bits in 64-ary levels, and `levels`, where the words of each level begin, and the end. Level 0 has one
bit for each value, every further level one bit for each non-empty word of the level below, so each operation is
O(log64 size): four words at most for 16 M values.
"""

from __future__ import annotations

import numpy as np

from strategies.arrays import Int64Array, UInt64Array
from strategies.compiled import kernel


def room_set(size: int) -> tuple[UInt64Array, Int64Array]:
    """Return an empty set for the values 0..size-1.  # shapes: (num_words,), (num_levels + 1,)"""
    starts = [0]
    num_words = -(-size // 64)
    while True:
        starts.append(starts[-1] + num_words)
        if num_words == 1:
            return np.zeros(starts[-1], np.uint64), np.array(starts, np.int64)
        num_words = -(-num_words // 64)


@kernel
def insert(words: UInt64Array, levels: Int64Array, value: int) -> None:
    """Add a value; nothing changes if it is a member already."""
    for level in range(levels.shape[0] - 1):
        words[levels[level] + (value >> 6)] |= np.uint64(1) << np.uint64(value & 63)
        value >>= 6


@kernel
def remove(words: UInt64Array, levels: Int64Array, value: int) -> None:
    """Take a member out."""
    for level in range(levels.shape[0] - 1):
        at = levels[level] + (value >> 6)
        words[at] &= ~(np.uint64(1) << np.uint64(value & 63))
        if words[at] != np.uint64(0):
            return
        value >>= 6


@kernel
def smallest_from(words: UInt64Array, levels: Int64Array, bound: int) -> int:
    """Return the smallest member that is not below `bound`, or -1."""
    num_levels = levels.shape[0] - 1
    for level in range(num_levels):
        if (bound >> 6) >= levels[level + 1] - levels[level]:
            return -1
        rest = words[levels[level] + (bound >> 6)] >> np.uint64(bound & 63)
        if rest != np.uint64(0):
            value = bound + _trailing_zeros(rest)
            for below in range(level - 1, -1, -1):
                value = (value << 6) + _trailing_zeros(words[levels[below] + value])
            return value
        bound = (bound >> 6) + 1
    return -1


@kernel
def _trailing_zeros(word: np.uint64) -> int:
    """Count the zero bits below the lowest set bit, by six masks (numba exposes no such instruction)."""
    lowest = word & (~word + np.uint64(1))
    count = 0
    if lowest & np.uint64(0xFFFFFFFF00000000):
        count += 32
    if lowest & np.uint64(0xFFFF0000FFFF0000):
        count += 16
    if lowest & np.uint64(0xFF00FF00FF00FF00):
        count += 8
    if lowest & np.uint64(0xF0F0F0F0F0F0F0F0):
        count += 4
    if lowest & np.uint64(0xCCCCCCCCCCCCCCCC):
        count += 2
    if lowest & np.uint64(0xAAAAAAAAAAAAAAAA):
        count += 1
    return count
