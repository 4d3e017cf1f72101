"""Related samples in full packs, block by block: mode `pack` of threshold filtering.

1. Samples are dealt into blocks of a few thousand, because all similarities inside a block are looked at.
2. In each block packs are grown that hold no two samples too close to each other. The well filled ones stay.
3. The samples of the others are grown again, conflicts now being a cost; again the well filled packs stay.
4. Samples of the packs that stay change places where that raises similarity or ends a conflict.
5. What is left joins the next block. In the last one it goes into packs by best fit, before step 4.

So fill is that of sorted bins but for a fixed share, nothing is lost, and few conflicts remain. Nothing depends on the
number of threads.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from strategies.arrays import Float32Array, Int16Array, Int32Array, Int64Array
from strategies.by_length import best_fit_decreasing
from strategies.by_length.sorting import longest_first
from strategies.contract import Plan, Request
from strategies.draws import Draws
from strategies.related.affinity import ONE, affinities
from strategies.related.exchange import exchange, prohibit
from strategies.related.growth import Packing, grow

_WASTE = 0.0015
"""The share of their capacity that packs which stay may leave empty, on average, beyond what sorted bins do."""

_CONFLICT_LEAD = 0.1
"""The similarity by which the sample with the most conflicts is preferred: later it would find no pack."""

_LENGTH_LEAD, _LONG = 0.1, 3.0
"""The similarity by which long samples are preferred, and the mean lengths from which on they are so in full: in a pack
of fewer samples fewer pairs have to be alike, and short ones are left to fill packs up."""

_NEARLY_FULL = 1.5
"""The room, in mean lengths, below which fitting counts."""

_FIT, _FIT_AGAIN = 0.5, 1.0
"""The similarity that filling all the room is worth, in steps 2 and 3."""

_MOST_REMAINDER = 0.25
"""The share of a block that may be left to the next; where more would be, it goes into packs by best fit."""

_MOST_OVERFILL = 1e-5
"""The share of a block's tokens that may stand over capacity after step 4, so that samples have to leave; where there
are more, step 4 is done anew, and no pack may be over-full at any time."""

_MOST_BYTES = 1 << 30
"""The bytes of affinities that may wait for step 4."""


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Samples that are looked at together, longest first, and what became of them."""

    samples: Int64Array
    """The segments that are the block's samples, longest first.  # shape: (num_samples,)"""

    pack: Int32Array
    """The pack of each sample; -1 where it has none.  # shape: (num_samples,)"""

    num_packs: int
    """The number of the block's packs."""

    affinity: Float32Array
    """The affinity of all pairs of samples.  # shape: (num_samples, num_samples)"""


def place_related(
    request: Request,
    embeddings: Int16Array,
    threshold: int,
    order: Int64Array,
    num_blocks: int,
    *,
    is_limit: bool,
) -> list[Int64Array]:
    """Return the segments of each pack.

    embeddings: the embedding of each segment.  # shape: (num_segments, num_dimensions)
    threshold: two segments conflict where the product of their embeddings is above it.
    order: the order in which segments are dealt into blocks, a permutation.  # shape: (num_segments,)
    is_limit: whether conflicts are to end at almost any cost in similarity.

    O(num_segments * (segments in a block) * (num_dimensions + sweeps)); step 4 runs on other threads.
    """
    lengths, capacity = request.lengths, request.capacity
    packs: list[Int64Array] = []
    remainder = np.empty(0, np.int64)
    ejections: list[Int64Array] = []
    waiting: deque[Future[tuple[list[Int64Array], Int64Array]]] = deque()

    def finish_one() -> None:
        finished, ejection = waiting.popleft().result()
        packs.extend(finished)
        ejections.append(ejection)

    with ThreadPoolExecutor(request.num_threads, thread_name_prefix="exchange") as pool:
        deals = np.array_split(order, num_blocks)
        for number, deal in enumerate(deals):
            is_last = number == len(deals) - 1
            while is_last and waiting:
                finish_one()
            samples = np.concatenate([remainder, deal, *(ejections if is_last else [])])
            samples = samples[longest_first(lengths[samples], capacity)]
            block = _grow_block(request, embeddings[samples], threshold, samples, is_last)
            remainder = samples[block.pack < 0]
            most_waiting = min(request.num_threads, _MOST_BYTES // block.affinity.nbytes)
            while len(waiting) > most_waiting:
                finish_one()
            waiting.append(pool.submit(_exchange_members, block, lengths, capacity, is_limit))
        finish_one()
    return _insert(packs, ejections[-1], request)


def _grow_block(request: Request, embeddings: Int16Array, threshold: int, samples: Int64Array, is_last: bool) -> _Block:
    """Take steps 2 and 3; in the last block also what is left goes into packs."""
    lengths, capacity = request.lengths[samples], request.capacity
    affinity, num_conflicts = affinities(embeddings, threshold)
    rank = np.empty(len(samples), np.float32)
    rank[np.argsort(num_conflicts, kind="stable")] = np.arange(len(samples), dtype=np.float32)
    long = np.minimum(lengths / np.float32(_LONG * request.lengths.mean()), 1).astype(np.float32)
    early = (rank * np.float32(_CONFLICT_LEAD / len(samples)) + long * np.float32(_LENGTH_LEAD)) * np.float32(ONE)
    nearly_full = int(_NEARLY_FULL * request.lengths.mean())
    pack = np.full(len(samples), -1, np.int32)
    num_packs = 0
    sorted_bins = _sorted_bins(lengths, request).num_packs
    unavoidable = max(0.0, 1 - (int(lengths.sum()) / capacity + 1) / sorted_bins)
    most_waste = (unavoidable + _WASTE) * capacity
    for fitting, conflicts in ((_FIT, False), (_FIT_AGAIN, True)):
        candidates = np.flatnonzero(pack < 0)
        if not len(candidates):
            break
        packing = grow(
            affinity,
            lengths,
            candidates,
            capacity=capacity,
            most_segments=request.most_segments,
            early=early,
            fitting=fitting,
            nearly_full=nearly_full,
            conflicts=conflicts,
        )
        number = _keep_fullest(packing, lengths[candidates], request, most_waste, num_packs, sorted_bins + 1)
        pack[candidates] = number[packing.pack]
        num_packs = max(num_packs, int(number.max()) + 1)
    rest = np.flatnonzero(pack < 0)
    if len(rest) and (is_last or len(rest) > _MOST_REMAINDER * len(samples)):
        packing = _best_fit(lengths[rest], request)
        number = np.arange(num_packs, num_packs + len(packing.room), dtype=np.int32)
        if not is_last:
            number = _keep_fullest(packing, lengths[rest], request, most_waste, num_packs, len(samples))
        pack[rest] = number[packing.pack]
        num_packs = max(num_packs, int(number.max()) + 1)
    return _Block(samples=samples, pack=pack, num_packs=num_packs, affinity=affinity)


def _keep_fullest(
    packing: Packing, lengths: Int32Array, request: Request, most_waste: float, first: int, most_packs: int
) -> Int32Array:
    """Return the number under which each pack stays, counted from `first`, or -1.

    The fullest stay, as many as leave samples behind that sorted bins can place in `most_packs`, those before `first`
    included: packs that took all short samples would leave long ones nobody can fill up.

    lengths: the tokens of each candidate.  # shape: (num_candidates,)
    most_waste: how many tokens packs which stay may leave empty, on average.
    # shape: (num_packs,)
    """
    order = np.argsort(packing.room, kind="stable")
    waste = np.cumsum(packing.room[order], dtype=np.int64)
    num_stay = int(np.count_nonzero(waste <= most_waste * np.arange(1, len(order) + 1)))
    number = np.full(len(order), -1, np.int32)
    while num_stay:
        number[:] = -1
        number[np.sort(order[:num_stay])] = np.arange(first, first + num_stay, dtype=np.int32)
        if first + num_stay + _sorted_bins(lengths[number[packing.pack] < 0], request).num_packs <= most_packs:
            return number
        num_stay = num_stay * 7 // 8
    return np.full(len(order), -1, np.int32)


def _best_fit(lengths: Int32Array, request: Request) -> Packing:
    """Put every candidate into a pack by best fit decreasing."""
    plan = _sorted_bins(lengths, request)
    pack = np.empty(len(lengths), np.int32)
    pack[plan.segment] = np.repeat(np.arange(plan.num_packs, dtype=np.int32), np.diff(plan.pack_offsets))
    room = request.capacity - np.bincount(pack, lengths, plan.num_packs).astype(np.int32)
    return Packing(pack=pack, room=room)


def _sorted_bins(lengths: Int32Array, request: Request) -> Plan:
    """Plan some samples by best fit decreasing, in packs as the request wants them."""
    return best_fit_decreasing.place(
        Request(lengths=lengths, capacity=request.capacity, max_segments=request.max_segments, draws=Draws("none"))
    )


def _exchange_members(
    block: _Block, lengths: Int32Array, capacity: int, is_limit: bool
) -> tuple[list[Int64Array], Int64Array]:
    """Take step 4; return the segments of each pack, and those that had to leave one because it stayed over-full."""
    tokens, affinity, num_packs = lengths[block.samples], block.affinity, block.num_packs
    pack = block.pack.copy()
    if is_limit:
        prohibit(affinity)
    exchange(affinity, tokens, pack, num_packs, capacity, may_overfill=True)
    if _overfill(tokens, pack, num_packs, capacity) > _MOST_OVERFILL * tokens.sum():
        pack = block.pack.copy()
        exchange(affinity, tokens, pack, num_packs, capacity, may_overfill=False)
    placed = np.flatnonzero(pack >= 0)
    by_pack = block.samples[placed[np.argsort(pack[placed], kind="stable")]]
    packs = np.split(by_pack, np.cumsum(np.bincount(pack[placed], minlength=num_packs)))[:-1]
    return packs, _eject(packs, lengths, capacity)


def _overfill(lengths: Int32Array, pack: Int32Array, num_packs: int, capacity: int) -> int:
    """Return how many tokens stand over capacity, in all packs."""
    placed = pack >= 0
    loads = np.bincount(pack[placed], lengths[placed], num_packs)
    return int(np.maximum(loads - capacity, 0).sum())


def _eject(packs: list[Int64Array], lengths: Int32Array, capacity: int) -> Int64Array:
    """Take as little as possible out of packs that are over capacity, and return what was taken."""
    ejection = []
    for number in range(len(packs)):
        while (excess := int((members := lengths[packs[number]]).sum()) - capacity) > 0:
            enough = np.flatnonzero(members >= excess)
            at = enough[members[enough].argmin()] if len(enough) else members.argmax()
            ejection.append(packs[number][at])
            packs[number] = np.delete(packs[number], at)
    return np.array(ejection, np.int64)


def _insert(packs: list[Int64Array], segments: Int64Array, request: Request) -> list[Int64Array]:
    """Put a few more segments, longest first, each into the fullest pack with room or a new one."""
    lengths, capacity = request.lengths, request.capacity
    rooms = [capacity - int(lengths[pack].sum()) for pack in packs] if len(segments) else []
    for segment in segments[np.argsort(-lengths[segments], kind="stable")]:
        length = int(lengths[segment])
        open_packs = (p for p, pack in enumerate(packs) if rooms[p] >= length and len(pack) < request.most_segments)
        room, at = min(((rooms[p], p) for p in open_packs), default=(capacity, len(packs)))
        if at == len(packs):
            packs.append(np.empty(0, np.int64))
            rooms.append(capacity)
        packs[at] = np.append(packs[at], segment)
        rooms[at] = room - length
    return packs
