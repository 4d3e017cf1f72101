"""Every `batch_size` consecutive segments, flattened into one pack.

The same number of optimizer steps as padded training with that batch size, without the padding: what
transformers' `DataCollatorWithFlattening` does while training, done once and offline.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from strategies.contract import Plan, Request, Strategy


@dataclass(frozen=True, kw_only=True)
class MinibatchOptions:
    """The options of `minibatch`."""

    batch_size: int = field(default=8, metadata={"help": "samples a pack; its capacity is batch_size x max_length"})
    shuffle: bool = field(default=False, metadata={"help": "true draws the mini-batches from a seeded permutation"})

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")


def place(request: Request) -> Plan:
    """Cut arrival order, or a seeded permutation, every `batch_size` segments; the last pack may have fewer.

    O(num_segments). Source: arXiv 2407.09105, "MiniBatchPacking + PosID".
    """
    count = len(request.lengths)
    order = request.draws.permutation(count) if request.options.shuffle else np.arange(count, dtype=np.int64)
    starts = np.arange(0, count, request.options.batch_size, dtype=np.int64)
    return Plan(segment=order, pack_offsets=np.append(starts, np.int64(count)))


def capacity(max_length: int, options: Any) -> int:
    """Return the tokens that a whole mini-batch may have."""
    return max_length * int(options.batch_size)


STRATEGY = Strategy(
    name="minibatch",
    place=place,
    summary="every batch_size consecutive samples",
    when="to keep the batches and optimizer steps of padded training",
    options=MinibatchOptions,
    capacity=capacity,
    least_max_segments=lambda options: int(options.batch_size),
)
