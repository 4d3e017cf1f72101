"""Random draws that are the same everywhere, for good.

Philox-4x64 counters (Salmon et al., 2011) keyed by the BLAKE2b hash of a readable purpose. Only raw
64-bit integers are used: numpy keeps those streams stable over versions, its distributions not.
"""

from __future__ import annotations

import hashlib

import numpy as np

from strategies.arrays import Int64Array, UInt64Array


class Draws:
    """An independent stream of integers for each readable purpose."""

    def __init__(self, purpose: str) -> None:
        """Begin the stream of a purpose, for instance "seed=0/window=3/pack-order"."""
        key = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=16).digest(), "little")
        self._bits = np.random.Philox(key=key)

    def integers(self, count: int) -> UInt64Array:
        """Draw `count` uniform 64-bit integers.  # shape: (count,)"""
        raw: UInt64Array = self._bits.random_raw(count)
        return raw

    def permutation(self, count: int) -> Int64Array:
        """Draw a permutation of 0..count-1, all equally likely: the stable order of `count` keys.

        O(count log count).  # shape: (count,)
        """
        return np.argsort(self.integers(count), kind="stable").astype(np.int64, copy=False)

    def sample(self, count: int, most: int) -> Int64Array:
        """Draw `most` different numbers of 0..count-1, or all where there are fewer, in random order.

        O(most log most).  # shape: (min(count, most),)
        """
        if count <= 4 * most:
            return self.permutation(count)[:most]
        drawn = (self.integers(2 * most) % np.uint64(count)).astype(np.int64)
        _, first = np.unique(drawn, return_index=True)
        return drawn[np.sort(first)[:most]]
