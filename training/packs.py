"""Packs as rows of an Arrow table: how long their segments are, and what there is to compute in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

Integers: TypeAlias = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]


def segment_lengths(packs: pa.Table) -> tuple[Integers, Integers]:
    """(lengths, counts): tokens of each segment, segments of each pack.  # shapes: (num_segments,), (num_packs,)

    packs: with their column `boundaries`.
    """
    boundaries = packs.column("boundaries").combine_chunks()
    num_bounds = np.diff(boundaries.offsets.to_numpy()).astype(np.int64)
    last = np.cumsum(num_bounds) - 1
    return np.delete(np.diff(boundaries.flatten().to_numpy()), last[:-1]), num_bounds - 1


def tokens_per_pack(lengths: Integers, counts: Integers) -> Integers:
    """Tokens of each pack.  # shape: (num_packs,)"""
    return np.add.reduceat(lengths, np.cumsum(counts) - counts, dtype=np.int64)


def extents(packs: pa.Table, *, joint: bool) -> tuple[Integers, Integers, Integers]:
    """(tokens of the longest segment, segments, tokens) of each pack.  # shapes: (num_packs,)

    joint: whether a pack attends as one segment.
    """
    lengths, counts = segment_lengths(packs)
    tokens = tokens_per_pack(lengths, counts)
    if joint:
        return tokens, np.ones_like(counts), tokens
    return np.maximum.reduceat(lengths, np.cumsum(counts) - counts).astype(np.int64), counts, tokens


@dataclass(frozen=True)
class Costs:
    """What there is to compute in some packs, padding left out."""

    packs: int = 0
    tokens: int = 0
    targets: int = 0
    samples: int = 0
    """Segments that have targets."""

    sum_length_squared: float = 0.0

    def __add__(self, other: Costs) -> Costs:
        return Costs(
            self.packs + other.packs,
            self.tokens + other.tokens,
            self.targets + other.targets,
            self.samples + other.samples,
            self.sum_length_squared + other.sum_length_squared,
        )


def costs(packs: pa.Table, *, joint: bool) -> Costs:
    """What there is to compute in packs. joint: whether a pack attends as one segment."""
    lengths, counts = segment_lengths(packs)
    attending = tokens_per_pack(lengths, counts) if joint else lengths
    targets = packs.column("target_counts").combine_chunks().flatten().to_numpy()
    return Costs(
        packs=len(counts),
        tokens=int(lengths.sum()),
        targets=int(targets.sum()),
        samples=int(np.count_nonzero(targets)),
        sum_length_squared=float((attending.astype(np.float64) ** 2).sum()),
    )
