"""What planning is measured against: LightBinPack's variants, and the same algorithm sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from functools import partial

import numpy as np

from benchmarks.inputs import Lengths
from benchmarks.measuring import FailedError
from strategies.arrays import Int64Array
from strategies.compiled import kernel


def lightbinpack_variants(lengths: Lengths, capacity: int) -> dict[str, Callable[[], int]]:
    """Every variant of LightBinPack that packs one kind of pack, as a function that gives the number of packs.

    The lengths are a list of Python's integers, made beforehand, which is what it reads. Variants for packs of several
    sizes are given that one size. Raises `FailedError` where it is not installed.
    """
    try:
        import lightbinpack as peer  # noqa: PLC0415 - compiled where it is installed
    except ImportError as error:
        raise FailedError(f"lightbinpack cannot be imported ({error}): scripts/bench installs it") from error
    listed = lengths.tolist()

    def grouped(name: str, strategy: int) -> int:
        return _flat(getattr(peer, name)(listed, capacity, 1, -1, strategy))

    return {
        "nf": lambda: len(peer.nf(listed, capacity)),
        "ffd": lambda: len(peer.ffd(listed, capacity)),
        "bfd": lambda: len(peer.bfd(listed, capacity)),
        "obfd": lambda: len(peer.obfd(listed, capacity)),
        "obfdp": lambda: len(peer.obfdp(listed, capacity)),
        **{
            f"{name}, strategy {number}": partial(grouped, name, number)
            for name in ("ogbfd", "ogbfdp")
            for number in (0, 1)
        },
        "ohgbfd": lambda: _flat(peer.ohgbfd(listed, [capacity])),
        "oshgbfd": lambda: _flat([group for _, group in peer.oshgbfd(listed, [[capacity]])]),
    }


def _flat(groups: Sequence[Sized]) -> int:
    """Packs in groups of one."""
    return sum(map(len, groups))


def per_sample(lengths: Lengths, capacity: int) -> int:
    """The packs of best-fit-decreasing when each sample looks for its pack: compiled, with a tree over the rooms left.

    O(num_samples log capacity), with as many packs as our plan has.
    """
    return int(_per_sample(np.sort(lengths)[::-1].copy(), capacity))


@kernel
def _per_sample(lengths: Int64Array, capacity: int) -> int:
    """Packs are stacks by their room; a tree of counts finds the smallest room in which the sample fits."""
    leaves = 1
    while leaves < capacity + 1:
        leaves *= 2
    count = np.zeros(2 * leaves, np.int64)
    top, below = np.full(capacity + 1, -1, np.int64), np.empty(len(lengths), np.int64)
    num_packs = 0
    for length in lengths:
        room = length
        node = leaves + room
        if count[node] == 0:
            while node > 1 and not (node % 2 == 0 and count[node + 1] > 0):
                node //= 2
            if node > 1:
                node += 1
                while node < leaves:
                    node = 2 * node if count[2 * node] > 0 else 2 * node + 1
            room = node - leaves if node > 1 else -1
        if room < 0:
            pack, room = num_packs, capacity
            num_packs += 1
        else:
            pack = top[room]
            top[room] = below[pack]
            node = leaves + room
            while node:
                count[node] -= 1
                node //= 2
        left = room - length
        below[pack], top[left] = top[left], pack
        node = leaves + left
        while node:
            count[node] += 1
            node //= 2
    return num_packs
