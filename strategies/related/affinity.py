"""Similarities that decide a plan, so they must be the same on every machine.

Unit vectors are stored as int16 at scale 4,000. Every partial sum of a product of two of them is a whole number of at
most about 4,000 squared, by Cauchy-Schwarz, and so below 2^24: a float32 matrix product of them is exact, whatever its
library adds up first and on however many threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from strategies.compiled import kernel
from strategies.contract import Int16Array, Int32Array

Float32Array = npt.NDArray[np.float32]

SCALE = 4000
"""What a vector of length one has in an embedding."""

ONE = SCALE * SCALE
"""The product of two embeddings whose cosine is one."""

MOST_DIMENSIONS = 8192
"""Rounding adds up to half a unit in each; beyond this a product might not fit 24 bits."""

PENALTY = 3.5
"""What a conflict takes from a similarity. Above two, so that affinities tell conflicts from all other pairs."""

CONFLICT = -PENALTY / 2 * ONE
"""Affinities below it are those of conflicts: similarities lie from -1 to 1."""

NO_THRESHOLD = np.int64(2 * ONE)
"""No product is above it."""


def quantise(vectors: npt.NDArray[Any]) -> Int16Array:
    """Vectors of any length as embeddings; zero vectors stay zero.  # shape: (num_vectors, num_dimensions)"""
    values = np.asarray(vectors, np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
    norms[norms == 0] = 1
    quantised: Int16Array = np.rint(values * (SCALE / norms)[:, None]).astype(np.int16)
    return quantised


def products(embeddings: Int16Array, others: Int16Array | None = None) -> Float32Array:
    """All products of two sets of embeddings, or of one with itself, exact.  # shape: (num_embeddings, num_others)"""
    left = embeddings.astype(np.float32)
    right = left if others is None else others.astype(np.float32)
    exact: Float32Array = left @ right.T
    return exact


def affinities(embeddings: Int16Array, threshold: int) -> tuple[Float32Array, Int32Array]:
    """Products, from which `PENALTY` similarities are taken where two samples conflict; how many each conflicts with.

    # shapes: (num_embeddings, num_embeddings), (num_embeddings,)
    """
    affinity = products(embeddings)
    return affinity, _penalise(affinity, np.float32(threshold), np.float32(PENALTY * ONE))


@kernel
def _penalise(affinity: Float32Array, threshold: np.float32, penalty: np.float32) -> Int32Array:
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
