"""A set of small integers that finds its smallest member not below a bound.

Bits in 64-ary levels: level 0 has one bit a value, each further level one bit a non-empty word of the
level below, so every operation is O(log64 size): four words at most for 16 M values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from strategies.compiled import kernel

Words = npt.NDArray[np.uint64]
Levels = npt.NDArray[np.int64]


def room_set(size: int) -> tuple[Words, Levels]:
    """An empty set for values below `size`: its words, and where each level's words begin."""
    starts = [0]
    num_words = -(-size // 64)
    while True:
        starts.append(starts[-1] + num_words)
        if num_words == 1:
            return np.zeros(starts[-1], np.uint64), np.array(starts, np.int64)
        num_words = -(-num_words // 64)


@kernel
def insert(words: Words, levels: Levels, value: int) -> None:
    """Add a value; nothing changes if it is a member."""
    for level in range(levels.shape[0] - 1):
        words[levels[level] + (value >> 6)] |= np.uint64(1) << np.uint64(value & 63)
        value >>= 6


@kernel
def remove(words: Words, levels: Levels, value: int) -> None:
    """Take a member out."""
    for level in range(levels.shape[0] - 1):
        at = levels[level] + (value >> 6)
        words[at] &= ~(np.uint64(1) << np.uint64(value & 63))
        if words[at] != np.uint64(0):
            return
        value >>= 6


@kernel
def smallest_from(words: Words, levels: Levels, bound: int) -> int:
    """The smallest member >= bound, or -1."""
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
    """Zero bits below the lowest set bit, by six masks (numba exposes no such instruction)."""
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
