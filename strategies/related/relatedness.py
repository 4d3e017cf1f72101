"""How related the samples in packs are, and how many of them are too close to each other."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from strategies.arrays import Int16Array, Int64Array, UInt8Array
from strategies.compiled import kernel
from strategies.contract import Plan, Request
from strategies.related.affinity import ONE

_MOST_TASKS = 64


def relatedness(request: Request, plan: Plan, threshold: int) -> dict[str, int | float]:
    """Return sums over packs, which add up over windows; `rates` turns them into figures.

    threshold: two segments conflict where the product of their embeddings is above it.

    The request has embeddings and segments. O(sum over packs of segments² * num_dimensions).
    """
    assert request.embeddings is not None
    num_packs = plan.num_packs
    products = np.zeros(num_packs, np.int64)
    conflicts = np.zeros(num_packs, np.int64)
    in_conflict = np.zeros(len(plan.segment), np.uint8)
    edges = np.linspace(0, num_packs, min(_MOST_TASKS, num_packs) + 1).astype(np.int64)
    with ThreadPoolExecutor(request.num_threads) as pool:
        for task in [
            pool.submit(
                _measure,
                request.embeddings,
                plan.segment,
                plan.pack_offsets,
                threshold,
                first,
                last,
                products,
                conflicts,
                in_conflict,
            )
            for first, last in pairwise(edges)
        ]:
            task.result()
    segments = np.diff(plan.pack_offsets)
    pairs = segments * (segments - 1) // 2
    tokens = np.add.reduceat(request.lengths[plan.segment], plan.pack_offsets[:-1], dtype=np.int64)
    return {
        "similarity_times_tokens": _weigh_similarity(products, pairs, tokens),
        "tokens_compared": int(tokens[pairs > 0].sum()),
        "conflicting_pairs": int(conflicts.sum()),
        "pairs": int(pairs.sum()),
        "segments_in_conflict": int(in_conflict.sum()),
    }


def rates(sums: Mapping[str, int | float], prefix: str) -> dict[str, float]:
    """Return the figures that follow from the sums whose names begin with `prefix`.

    mean_in_pack_similarity: the mean pairwise cosine of packs of two or more segments, weighted by the packs' tokens.
    conflict_rate: conflicting pairs in packs / all pairs in packs.
    """
    tokens, pairs = sums.get(f"{prefix}tokens_compared", 0), sums.get(f"{prefix}pairs", 0)
    return {
        f"{prefix}mean_in_pack_similarity": sums[f"{prefix}similarity_times_tokens"] / tokens if tokens else 0.0,
        f"{prefix}conflict_rate": sums[f"{prefix}conflicting_pairs"] / pairs if pairs else 0.0,
    }


@kernel
def _weigh_similarity(products: Int64Array, pairs: Int64Array, tokens: Int64Array) -> float:
    """Sum mean cosine times tokens over packs, one after the other, so that rounding is the same everywhere."""
    total = 0.0
    for pack in range(products.shape[0]):
        if pairs[pack] > 0:
            total += np.float64(products[pack]) / np.float64(pairs[pack]) / ONE * np.float64(tokens[pack])
    return total


@kernel
def _measure(
    embeddings: Int16Array,
    segment: Int64Array,
    offsets: Int64Array,
    threshold: int,
    first: int,
    last: int,
    products: Int64Array,
    conflicts: Int64Array,
    in_conflict: UInt8Array,
) -> None:
    """Fill in, for packs first..last-1, the sum of products, the number of conflicts, and the places in conflict."""
    for pack in range(first, last):
        for i in range(offsets[pack], offsets[pack + 1]):
            for j in range(i + 1, offsets[pack + 1]):
                value = product(embeddings[segment[i]], embeddings[segment[j]])
                products[pack] += value
                if value > threshold:
                    conflicts[pack] += 1
                    in_conflict[i] = 1
                    in_conflict[j] = 1


@kernel
def product(one: Int16Array, other: Int16Array) -> np.int32:
    """Return the product of two embeddings, without rounding."""
    total = np.int32(0)
    for k in range(one.shape[0]):
        total += np.int32(one[k]) * np.int32(other[k])
    return total
