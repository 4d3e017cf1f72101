"""Packs grown one after the other, each from the longest sample left, by affinity to what is in it already."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from strategies.arrays import Float32Array, Int32Array, Int64Array
from strategies.compiled import kernel
from strategies.related.affinity import CONFLICT, ONE

_CONFLICT = np.float32(CONFLICT)


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Packs that some of a block's samples, the candidates, were put into."""

    pack: Int32Array
    """The pack of each candidate.  # shape: (num_candidates,)"""

    room: Int32Array
    """The tokens that each pack leaves empty.  # shape: (num_packs,)"""


def grow(
    affinity: Float32Array,
    lengths: Int32Array,
    candidates: Int64Array,
    *,
    capacity: int,
    most_segments: int,
    early: Float32Array,
    fitting: float,
    nearly_full: int,
    conflicts: bool,
) -> Packing:
    """Put every candidate into a pack.

    To a pack the candidate is added that fits and whose mean affinity to the members plus its `early` is greatest; once
    the room is below `nearly_full` tokens, whose mean affinity plus `fitting` times the share of the room it fills is.

    affinity: the affinity of all pairs of a block's samples.  # shape: (num_samples, num_samples)
    lengths: the tokens of all of a block's samples.  # shape: (num_samples,)
    candidates: the samples to be placed, longest first.  # shape: (num_candidates,)
    most_segments: how many candidates a pack may hold.
    early: an affinity by which each sample is preferred.  # shape: (num_samples,)
    fitting: a similarity, that of filling all the room.
    conflicts: whether a pack may take a sample that conflicts with a member, if nothing better is left.

    O(num_candidates²).
    """
    pack, room = _grow(
        affinity, lengths, candidates, capacity, most_segments, early, np.float32(fitting * ONE), nearly_full, conflicts
    )
    return Packing(pack=pack, room=room)


@kernel
def _grow(
    affinity: Float32Array,
    lengths: Int32Array,
    candidates: Int64Array,
    capacity: int,
    most_segments: int,
    early: Float32Array,
    fitting: np.float32,
    nearly_full: int,
    conflicts: bool,
) -> tuple[Int32Array, Int32Array]:
    """Return the pack of each candidate and the room of each pack. See `grow`; `fitting` is an affinity here."""
    num = candidates.shape[0]
    pack = np.full(num, -1, np.int32)
    rooms = np.empty(num, np.int32)
    num_packs = 0
    unplaced = np.arange(num)
    num_unplaced = num
    fits = np.empty(num, np.int64)
    total = np.empty(num, np.float32)  # the sum of affinities to the members, of each that fits
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
        while num_members < most_segments:
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
