"""The published walk of threshold filtering packing, made safe: every sample is visited exactly once.

It goes from each sample to the nearest unvisited one that is far enough from each of the last four. The published code
visits sample 0 again when every candidate is too close, and loses real samples; here the candidate is taken whose
nearest of the last four is farthest. Source: arXiv 2408.09327, and the script released with it.
"""

from __future__ import annotations

import numpy as np

from strategies.arrays import Int16Array, Int32Array, Int64Array
from strategies.compiled import kernel
from strategies.related.relatedness import product

LAST = 4
"""The number of samples at the end of the path that the next one must be far enough from."""

_ENOUGH_CANDIDATES = 4096
"""The number of nearby candidates among which `walk_lists` chooses."""

_MOST_CANDIDATES = 10_000
"""The number of candidates after which any is accepted, as published."""


def walk(embeddings: Int16Array, threshold: int, start: int) -> tuple[Int64Array, int]:
    """Return the order in which samples are visited, and at how many steps every candidate was too close.

    embeddings: the embedding of each sample.  # shape: (num_samples, num_dimensions)
    threshold: two samples are too close where the product of their embeddings is above it.
    start: the first sample.

    Of equally near samples the first is taken. O(num_samples² * num_dimensions) time, O(num_samples) memory.
    # shape: (num_samples,)
    """
    return _walk(embeddings.copy(), threshold, start)


@kernel
def _walk(embeddings: Int16Array, threshold: int, start: int) -> tuple[Int64Array, int]:
    """Walk; the embeddings are reordered, so that those of unvisited samples stay together."""
    num = embeddings.shape[0]
    order = np.empty(num, np.int64)
    left = np.arange(num)
    near = np.zeros((LAST, num), np.int32)  # products of the last samples with those left
    current = embeddings[start].copy()
    order[0] = start
    num_left = _take_out(embeddings, left, near, start, num)
    num_forced = 0
    for step in range(1, num):
        latest = (step - 1) % LAST
        remembered = min(step, LAST)
        best, at = np.int64(-(2**40)), -1
        farthest, forced_at = np.int64(2**40), -1
        for i in range(num_left):
            value = product(embeddings[i], current)
            near[latest, i] = value
            closest = value
            for k in range(remembered):
                closest = max(closest, near[k, i])
            if closest <= threshold:
                if value > best or (value == best and left[i] < left[at]):
                    best, at = np.int64(value), i
            elif closest < farthest or (closest == farthest and left[i] < left[forced_at]):
                farthest, forced_at = np.int64(closest), i
        if at < 0:
            at = forced_at
            num_forced += 1
        order[step] = left[at]
        current[:] = embeddings[at]
        num_left = _take_out(embeddings, left, near, at, num_left)
    return order, num_forced


@kernel
def _take_out(embeddings: Int16Array, left: Int64Array, near: Int32Array, at: int, num_left: int) -> int:
    """Fill the place of a visited sample with the last of those left, and return how many are left."""
    last = num_left - 1
    left[at] = left[last]
    embeddings[at] = embeddings[last]
    for k in range(near.shape[0]):
        near[k, at] = near[k, last]
    return last


def walk_lists(
    embeddings: Int16Array, threshold: int, start: int, lists: Int32Array, near_lists: Int32Array
) -> tuple[Int64Array, int]:
    """Walk as `walk` does, over many samples: the next one is sought among some thousand that lie nearby.

    lists: the list (cluster) of each sample.  # shape: (num_samples,)
    near_lists: for each list all lists, in the order in which they are searched.  # shape: (num_lists, num_lists)

    Lists are searched whole, until one of at least 4,096 candidates is far enough, or 10,000 were too close; then the
    least close of these is taken. O(num_samples * 10,000 * num_dimensions).  # shape: (num_samples,)
    """
    by_list = np.argsort(lists, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(lists, minlength=len(near_lists)))])
    begin = int(np.flatnonzero(by_list == start)[0])
    order, num_forced = _walk_lists(
        embeddings[by_list], threshold, begin, first, near_lists, _ENOUGH_CANDIDATES, _MOST_CANDIDATES
    )
    return by_list[order], num_forced


@kernel
def _walk_lists(
    embeddings: Int16Array,
    threshold: int,
    start: int,
    first: Int64Array,
    near_lists: Int32Array,
    enough_candidates: int,
    most_candidates: int,
) -> tuple[Int64Array, int]:
    """Walk; the embeddings stand list after list, and `first` says where each list begins, and the end."""
    num = embeddings.shape[0]
    order = np.empty(num, np.int64)
    left = np.arange(num)  # of each list, those unvisited lie at its beginning
    num_left = first[1:] - first[:-1]
    at, own = start, 0
    while first[own + 1] <= start:
        own += 1
    num_forced = 0
    for step in range(num):
        order[step] = left[at]
        num_left[own] -= 1
        left[at] = left[first[own] + num_left[own]]
        current = embeddings[order[step]]
        best, best_list = np.int64(-(2**40)), -1
        farthest, farthest_list = np.int64(2**40), -1
        at_best, at_farthest, num_candidates = 0, 0, 0
        for other in near_lists[own]:
            for i in range(first[other], first[other] + num_left[other]):
                value = np.int64(product(embeddings[left[i]], current))
                if value <= best:
                    continue  # not nearer, if it were far enough from the others
                closest = value
                for k in range(max(0, step - LAST + 1), step):
                    closest = max(closest, np.int64(product(embeddings[left[i]], embeddings[order[k]])))
                if closest <= threshold:
                    best, best_list, at_best = value, other, i
                elif closest < farthest:
                    farthest, farthest_list, at_farthest = closest, other, i
            num_candidates += num_left[other]
            if num_candidates >= (enough_candidates if best_list >= 0 else most_candidates):
                break
        at, own = (at_best, best_list) if best_list >= 0 else (at_farthest, farthest_list)
        num_forced += best_list < 0 and step < num - 1
    return order, num_forced
