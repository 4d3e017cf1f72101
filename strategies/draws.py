"""Random draws that are the same everywhere, for good.

Philox-4x64 counters (Salmon et al., 2011) keyed by the BLAKE2b hash of a readable purpose. Only raw
64-bit integers are used: numpy keeps those streams stable over versions, its distributions not.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


class Draws:
    """An independent stream of integers for each readable purpose."""

    def __init__(self, purpose: str) -> None:
        """`purpose`: for instance "seed=0/window=3/pack-order"."""
        key = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=16).digest(), "little")
        self._bits = np.random.Philox(key=key)

    def integers(self, count: int) -> npt.NDArray[np.uint64]:
        """`count` uniform 64-bit integers.  # shape: (count,)"""
        raw: npt.NDArray[np.uint64] = self._bits.random_raw(count)
        return raw

    def permutation(self, count: int) -> npt.NDArray[np.int64]:
        """A uniform permutation of 0..count-1: the stable order of `count` drawn keys.  # shape: (count,)"""
        return np.argsort(self.integers(count), kind="stable").astype(np.int64, copy=False)

    def sample(self, count: int, most: int) -> npt.NDArray[np.int64]:
        """`most` different ones of 0..count-1, or all of them, in random order.  # shape: (min(count, most),)"""
        if count <= 4 * most:
            return self.permutation(count)[:most]
        drawn = (self.integers(2 * most) % np.uint64(count)).astype(np.int64)
        _, first = np.unique(drawn, return_index=True)
        return drawn[np.sort(first)[:most]]
