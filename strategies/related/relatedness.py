"""How related the samples in packs are, and how many of them are too close to each other."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from strategies.compiled import kernel
from strategies.contract import Int16Array, Int64Array, Plan, Request
from strategies.related.affinity import ONE

_TASKS = 64


def relatedness(request: Request, plan: Plan, threshold: int) -> dict[str, int | float]:
    """Sums over packs, which merge over windows; `rates` turns them into figures.

    threshold: products above it are conflicts. O(sum over packs of segments² * num_dimensions).
    """
    assert request.embeddings is not None
    num_packs = plan.num_packs
    products = np.zeros(num_packs, np.int64)
    conflicts = np.zeros(num_packs, np.int64)
    in_conflict = np.zeros(len(plan.segment), np.uint8)
    edges = np.linspace(0, num_packs, _TASKS + 1).astype(np.int64)
    with ThreadPoolExecutor(request.num_threads) as pool:
        for done in [
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
            done.result()
    segments = np.diff(plan.pack_offsets)
    pairs = segments * (segments - 1) // 2
    tokens = np.add.reduceat(request.lengths[plan.segment], plan.pack_offsets[:-1], dtype=np.int64)
    return {
        "similarity_times_tokens": _weighted(products, pairs, tokens),
        "tokens_compared": int(tokens[pairs > 0].sum()),
        "conflicting_pairs": int(conflicts.sum()),
        "pairs": int(pairs.sum()),
        "segments_in_conflict": int(in_conflict.sum()),
    }


def rates(sums: Mapping[str, int | float], prefix: str) -> dict[str, float]:
    """Figures from the sums whose names begin with `prefix`.

    mean_in_pack_similarity: over packs of two or more segments, the mean pairwise cosine, weighted by the pack's
    tokens; conflict_rate: conflicting pairs in packs / all pairs in packs.
    """
    compared, pairs = sums.get(f"{prefix}tokens_compared", 0), sums.get(f"{prefix}pairs", 0)
    return {
        f"{prefix}mean_in_pack_similarity": sums[f"{prefix}similarity_times_tokens"] / compared if compared else 0.0,
        f"{prefix}conflict_rate": sums[f"{prefix}conflicting_pairs"] / pairs if pairs else 0.0,
    }


@kernel
def _weighted(products: Int64Array, pairs: Int64Array, tokens: Int64Array) -> float:
    """Sum over packs of mean cosine times tokens; one after the other, so that rounding is the same everywhere."""
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
    in_conflict: npt.NDArray[np.uint8],
) -> None:
    """Fill, for packs first..last-1, the sum of products over pairs and the number of conflicts."""
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
    """Of two embeddings, exact."""
    total = np.int32(0)
    for k in range(one.shape[0]):
        total += np.int32(one[k]) * np.int32(other[k])
    return total
