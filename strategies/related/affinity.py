"""Similarities that decide a plan, so they must be the same on every machine.

Unit vectors are stored as int16 at scale 4,000. Every partial sum of a product of two of them is a whole number of at
most about 4,000 squared, by Cauchy-Schwarz, and so below 2^24: a float32 matrix product of them is exact, whatever its
library adds up first and on however many threads.
"""

from __future__ import annotations

import numpy as np

from strategies.arrays import AnyArray, Float32Array, Int16Array, Int32Array
from strategies.compiled import kernel

SCALE = 4000
"""The length of an embedding, whose vector has length one."""

ONE = SCALE * SCALE
"""The product of two embeddings whose cosine is one."""

MOST_DIMENSIONS = 8192
"""Rounding adds up to half a unit in each dimension; in more than these a product might not fit 24 bits."""

PENALTY = 3.5
"""The similarity that a conflict costs: more than two, so that affinities tell conflicts from all other pairs."""

CONFLICT = -PENALTY / 2 * ONE
"""A bound that the affinities of conflicts, and of no others, lie below: similarities lie from -1 to 1."""

NO_THRESHOLD = np.int64(2 * ONE)
"""A threshold that no product is above."""


def quantise(vectors: AnyArray) -> Int16Array:
    """Return vectors of any length as embeddings; zero vectors stay zero.  # shape: (num_vectors, num_dimensions)"""
    values = np.asarray(vectors, np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
    norms[norms == 0] = 1
    quantised: Int16Array = np.rint(values * (SCALE / norms)[:, None]).astype(np.int16)
    return quantised


def products(embeddings: Int16Array, others: Int16Array | None = None) -> Float32Array:
    """Return all products of two sets of embeddings, or of one with itself, without rounding.

    O(num_embeddings * num_others * num_dimensions).  # shape: (num_embeddings, num_others)
    """
    left = embeddings.astype(np.float32)
    right = left if others is None else others.astype(np.float32)
    exact: Float32Array = left @ right.T
    return exact


def affinities(embeddings: Int16Array, threshold: int) -> tuple[Float32Array, Int32Array]:
    """Return the affinity of all pairs of samples, and how many others each sample conflicts with.

    threshold: two samples conflict where the product of their embeddings is above it.

    The affinity of two samples is their product, less `PENALTY` similarities where they conflict.
    O(num_embeddings² * num_dimensions).  # shapes: (num_embeddings, num_embeddings), (num_embeddings,)
    """
    affinity = products(embeddings)
    return affinity, _penalise(affinity, np.float32(threshold), np.float32(PENALTY * ONE))


@kernel
def _penalise(affinity: Float32Array, threshold: np.float32, penalty: np.float32) -> Int32Array:
    """Turn products into affinities where they lie, and count each sample's conflicts."""
    num_conflicts = np.zeros(affinity.shape[0], np.int32)
    for i in range(affinity.shape[0]):
        row = affinity[i]
        count = 0
        for j in range(row.shape[0]):
            conflicts = row[j] > threshold
            count += conflicts
            row[j] -= penalty if conflicts else np.float32(0)
        num_conflicts[i] = count - (affinity[i, i] < CONFLICT)
        if affinity[i, i] < CONFLICT:
            affinity[i, i] += penalty  # nothing conflicts with itself
    return num_conflicts
