"""Local search over packs that are full already: two samples change places where that helps.

Only samples of about the same length can change places when packs are full, which leaves each few partners. So packs
may be over-full for a while: the first sweeps charge little for it, each later one more, and the last ones only mend.
"""

from __future__ import annotations

import numpy as np

from strategies.arrays import Float32Array, Int32Array, Int64Array
from strategies.compiled import kernel
from strategies.related.affinity import CONFLICT, ONE

_SEARCH_COSTS = (0.05, 0.05, 0.07, 0.07, 0.1, 0.15, 0.2, 0.3, 0.45, 0.7, 1.0, 1.6)
"""What a token over capacity costs in each sweep over all samples, in tokens times similarity: at 0.1, ten tokens over
weigh as much as one pack's token whose similarity falls by one."""

_PROHIBITION = 1e4
"""A cost of a token over capacity that no gain outweighs."""

_MENDING_COSTS = (3.0, 6.0, 12.0, 25.0, 50.0, 1e3, *[_PROHIBITION] * 4)
"""What a token over capacity costs in each sweep over the samples of over-full packs."""

_POLISHING_SWEEPS = 4
"""The number of sweeps over all samples at the end, which overfill nothing."""

_PARTING_SWEEPS = 4
"""The number of sweeps over samples in conflict, each of which may then change places with any other."""

_PROHIBITED = 20.0
"""The similarity that a conflict costs more where conflicts have to end."""

_FEWEST_PARTNERS_APART = 32  # tokens of difference in length that are always considered
_MOST_PARTNERS = 2048  # on either side, in the order of lengths
_UNIT = np.float32(16)  # of gains, which are integers because their maximum is found several times faster
_MOST_OVER = np.int32(1 << 12)  # tokens over capacity beyond which a pack is just as bad
_LEAST_GAIN = 1  # in units
_NEVER = np.float32(-1e9)

_ALL, _OF_OVER_FULL, _IN_CONFLICT = 0, 1, 2
"""The samples for which a sweep seeks a better place."""


def prohibit(affinity: Float32Array) -> None:
    """Let conflicts cost so much that they end at almost any cost in affinity.

    affinity: of all pairs of a block's samples; changed where it lies.  # shape: (num_samples, num_samples)
    """
    _lower(affinity, np.float32(CONFLICT), np.float32(_PROHIBITED * ONE))


def exchange(
    affinity: Float32Array, lengths: Int32Array, pack: Int32Array, num_packs: int, capacity: int, *, may_overfill: bool
) -> None:
    """Let samples change places so that the mean in-pack affinity, weighted by tokens, rises.

    affinity: the affinity of all pairs of a block's samples.  # shape: (num_samples, num_samples)
    lengths: the tokens of each sample, descending.  # shape: (num_samples,)
    pack: the pack of each sample, -1 for those that stay out; changed where it lies.  # shape: (num_samples,)
    may_overfill: whether packs may be over capacity meanwhile; where that cannot be mended they are so afterwards.

    O(sweeps * num_samples * partners), the partners being samples of about the same length, at most 4096.
    """
    if may_overfill:
        sweeps = [(cost, _ALL) for cost in _SEARCH_COSTS]
        sweeps += [(cost, _OF_OVER_FULL) for cost in _MENDING_COSTS]
        sweeps += [(_PROHIBITION, _ALL)] * _POLISHING_SWEEPS
    else:
        sweeps = [(_PROHIBITION, _ALL)] * len(_SEARCH_COSTS)
    sweeps += [(_PROHIBITION, _IN_CONFLICT)] * _PARTING_SWEEPS
    placed = np.flatnonzero(pack >= 0)
    if num_packs < 2 or len(placed) < 3:
        return
    apart = max(_FEWEST_PARTNERS_APART, int(lengths[placed].mean()) // 2)
    by_pack = placed[np.argsort(pack[placed], kind="stable")]
    offsets = np.zeros(num_packs + 2, np.int64)
    np.cumsum(np.bincount(pack[placed], minlength=num_packs), out=offsets[1:-1])
    offsets[-1] = offsets[-2]
    pack[pack < 0] = num_packs  # a pack that nothing enters or leaves
    costs, samples = np.array([cost for cost, _ in sweeps], np.float32), np.array([which for _, which in sweeps])
    _exchange(affinity, lengths, pack, by_pack, offsets, capacity, costs, samples, apart)
    pack[pack == num_packs] = -1


@kernel
def _exchange(
    affinity: Float32Array,
    lengths: Int32Array,
    pack: Int32Array,
    by_pack: Int64Array,
    offsets: Int64Array,
    capacity: int,
    costs: Float32Array,
    samples: Int64Array,
    apart: int,
) -> None:
    """Change `pack`, and with it `by_pack`, the members of each pack; an exchange leaves `offsets` as they are."""
    num = lengths.shape[0]
    num_packs = offsets.shape[0] - 1  # the last stays as it is
    slot = np.full(num, -1, np.int64)
    to_pack = np.zeros((num_packs, num), np.float32)  # the sum of each sample's affinities to a pack's members
    weight = np.zeros(num_packs, np.float32)  # gain in units for each affinity between two members
    over = np.empty(num, np.int32)  # the tokens over capacity of each sample's pack
    own = np.empty(num, np.float32)  # the sum of each sample's affinities to the other members of its pack
    weights = np.zeros(num, np.float32)  # the weight of each sample's pack
    for p in range(num_packs - 1):
        load = np.int64(0)
        for i in range(offsets[p], offsets[p + 1]):
            sample = by_pack[i]
            slot[sample] = i
            load += lengths[sample]
            for j in range(num):
                to_pack[p, j] += affinity[sample, j]
        members = offsets[p + 1] - offsets[p]
        if members > 1:
            weight[p] = _UNIT * np.float32(2.0 * capacity / (members * (members - 1))) / np.float32(ONE)
        for i in range(offsets[p], offsets[p + 1]):
            sample = by_pack[i]
            over[sample] = load - capacity
            own[sample] = to_pack[p, sample] - affinity[sample, sample]
            weights[sample] = weight[p]
    for sample in range(num):
        if pack[sample] == num_packs - 1:
            over[sample], own[sample], weights[sample] = 0, 0, 1

    row = np.empty(num_packs, np.float32)
    entering = np.empty(num, np.float32)
    gain = np.empty(num, np.int32)
    for sweep in range(costs.shape[0]):
        cost = costs[sweep] * _UNIT
        for a in range(num):
            first = pack[a]
            if first == num_packs - 1 or (samples[sweep] == _OF_OVER_FULL and over[a] <= 0):
                continue
            if samples[sweep] == _IN_CONFLICT:
                conflicts = False
                for i in range(offsets[first], offsets[first + 1]):
                    conflicts |= affinity[a, by_pack[i]] < CONFLICT
                if not conflicts:
                    continue
            begin = a
            end = a + 1
            if samples[sweep] != _ALL:
                begin, end = 0, num
            else:
                while begin > 0 and lengths[begin - 1] - lengths[a] <= apart and a - begin < _MOST_PARTNERS:
                    begin -= 1
                while end < num and lengths[a] - lengths[end] <= apart and end - a < _MOST_PARTNERS:
                    end += 1
            for p in range(num_packs):
                row[p] = to_pack[p, a]
            row[first] = _NEVER
            row[num_packs - 1] = _NEVER
            for b in range(begin, end):
                entering[b] = row[pack[b]]
            best = _gains(
                affinity[a, begin:end],
                to_pack[first, begin:end],
                entering[begin:end],
                own[begin:end],
                weights[begin:end],
                lengths[begin:end],
                over[begin:end],
                own[a],
                weight[first],
                lengths[a],
                over[a],
                cost,
                gain[begin:end],
            )
            if best < _LEAST_GAIN:
                continue
            b = begin
            while gain[b] != best:
                b += 1
            second = pack[b]
            for j in range(num):
                difference = affinity[b, j] - affinity[a, j]
                to_pack[first, j] += difference
                to_pack[second, j] -= difference
            pack[a], pack[b] = second, first
            slot[a], slot[b] = slot[b], slot[a]
            by_pack[slot[a]], by_pack[slot[b]] = a, b
            weights[a], weights[b] = weight[second], weight[first]
            over[a], over[b] = over[b], over[a]
            longer = lengths[b] - lengths[a]
            for i in range(offsets[first], offsets[first + 1]):
                sample = by_pack[i]
                own[sample] = to_pack[first, sample] - affinity[sample, sample]
                over[sample] += longer
            for i in range(offsets[second], offsets[second + 1]):
                sample = by_pack[i]
                own[sample] = to_pack[second, sample] - affinity[sample, sample]
                over[sample] -= longer


@kernel
def _lower(affinity: Float32Array, below: np.float32, by: np.float32) -> None:
    """Lower affinities that are below a bound."""
    for i in range(affinity.shape[0]):
        row = affinity[i]
        for j in range(row.shape[0]):
            row[j] -= by if row[j] < below else np.float32(0)


@kernel
def _gains(
    affinity: Float32Array,
    to_first: Float32Array,
    entering: Float32Array,
    own: Float32Array,
    weights: Float32Array,
    lengths: Int32Array,
    over: Int32Array,
    own_of_one: np.float32,
    weight: np.float32,
    length: np.int32,
    over_of_one: np.int32,
    cost: np.float32,
    gain: Int32Array,
) -> np.int32:
    """Compute what one sample gains by changing places with each of the others, in units, and return the most.

    to_first: the affinity of each other to the pack of the one.
    entering: the affinity of the one to the pack of each other.

    It has no branches, so that it vectorises.
    """
    none = np.int32(0)
    one_before = min(max(none, over_of_one), _MOST_OVER)
    for i in range(gain.shape[0]):
        longer = np.int32(lengths[i] - length)
        before = one_before + min(max(none, over[i]), _MOST_OVER)
        after = min(max(none, np.int32(over_of_one + longer)), _MOST_OVER)
        after += min(max(none, np.int32(over[i] - longer)), _MOST_OVER)
        raised = weight * (to_first[i] - affinity[i] - own_of_one) + weights[i] * (entering[i] - affinity[i] - own[i])
        raised -= cost * np.float32(np.int32(after - before))
        gain[i] = np.int32(min(max(raised, np.float32(-2e9)), np.float32(2e9)))
    best: np.int32 = gain[0]
    for i in range(1, gain.shape[0]):
        best = max(best, gain[i])
    return best
