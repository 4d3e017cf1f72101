"""Packs grown one after the other, each from the longest sample left, by affinity to what is in it already."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from strategies.compiled import kernel
from strategies.contract import Int32Array, Int64Array
from strategies.related.affinity import CONFLICT, ONE, Float32Array

_CONFLICT = np.float32(CONFLICT)


@dataclass(frozen=True, kw_only=True)
class Grown:
    """Packs of some of a block's samples."""

    pack: Int32Array
    """Of each candidate.  # shape: (num_candidates,)"""

    room: Int32Array
    """Tokens left in each pack.  # shape: (num_packs,)"""


def grow(
    affinity: Float32Array,
    lengths: Int32Array,
    candidates: Int64Array,
    *,
    capacity: int,
    early: Float32Array,
    fitting: float,
    nearly_full: int,
    conflicts: bool,
) -> Grown:
    """Place every candidate.

    To each pack the candidate is added that fits and whose mean affinity to the members plus its `early` is greatest;
    once the room is below `nearly_full` tokens, plus `fitting` times the share of the room that it fills instead.

    affinity: of all samples of a block.  # shape: (num_samples, num_samples)
    lengths: of all of them.  # shape: (num_samples,)
    candidates: indices of those to be placed, longest first.  # shape: (num_candidates,)
    early: in units of `ONE`, what speaks for placing a sample early.  # shape: (num_samples,)
    conflicts: whether a pack may take what conflicts with a member, if nothing better is left.

    O(num_candidates²).
    """
    pack, room = _grow(
        affinity, lengths, candidates, capacity, early, np.float32(fitting * ONE), nearly_full, conflicts
    )
    return Grown(pack=pack, room=room)


@kernel
def _grow(
    affinity: Float32Array,
    lengths: Int32Array,
    candidates: Int64Array,
    capacity: int,
    early: Float32Array,
    fitting: np.float32,
    nearly_full: int,
    conflicts: bool,
) -> tuple[Int32Array, Int32Array]:
    num = candidates.shape[0]
    pack = np.full(num, -1, np.int32)
    rooms = np.empty(num, np.int32)
    num_packs = 0
    unplaced = np.arange(num)
    num_unplaced = num
    fits = np.empty(num, np.int64)
    total = np.empty(num, np.float32)  # of each that fits: its affinities to the members
    while True:
        kept = 0
        for i in range(num_unplaced):
            if pack[unplaced[i]] < 0:
                unplaced[kept] = unplaced[i]
                kept += 1
        num_unplaced = kept
        if num_unplaced == 0:
            return pack, rooms[:num_packs].copy()
        added = unplaced[0]
        num_fits = num_unplaced - 1
        for i in range(num_fits):
            fits[i] = unplaced[i + 1]
            total[i] = 0
        pack[added] = num_packs
        room = capacity - lengths[candidates[added]]
        num_members = 1
        while True:
            row = affinity[candidates[added]]
            kept = 0
            for i in range(num_fits):
                one = fits[i]
                sample = candidates[one]
                if one != added and lengths[sample] <= room and (conflicts or row[sample] > _CONFLICT):
                    fits[kept] = one
                    total[kept] = total[i] + row[sample]
                    kept += 1
            num_fits = kept
            if num_fits == 0:
                break
            share = np.float32(1.0) / np.float32(num_members)
            best, at = np.float32(-3e38), 0
            if room < nearly_full:
                each = fitting / np.float32(room)
                for i in range(num_fits):
                    score = total[i] * share + each * np.float32(lengths[candidates[fits[i]]])
                    if score > best:
                        best, at = score, i
            else:
                for i in range(num_fits):
                    score = total[i] * share + early[candidates[fits[i]]]
                    if score > best:
                        best, at = score, i
            added = fits[at]
            pack[added] = num_packs
            room -= lengths[candidates[added]]
            num_members += 1
        rooms[num_packs] = room
        num_packs += 1
