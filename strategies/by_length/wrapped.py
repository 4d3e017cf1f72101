"""Concatenate and cut: the packing of pre-training, at the price of samples in pieces."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from strategies.arrays import Int64Array
from strategies.by_length import next_fit
from strategies.contract import Strategy
from strategies.draws import Draws


@dataclass(frozen=True, kw_only=True)
class WrappedOptions:
    """The options of `wrapped`."""

    shuffle: bool = field(default=False, metadata={"help": "true concatenates in a seeded permutation"})


def stream_order(num_samples: int, draws: Draws, options: Any) -> Int64Array:
    """Return arrival order, or a seeded permutation.  # shape: (num_samples,)"""
    return draws.permutation(num_samples) if options.shuffle else np.arange(num_samples, dtype=np.int64)


STRATEGY = Strategy(
    name="wrapped",
    aliases=("random",),
    place=next_fit.place,  # the stream is cut so that it fills every pack that no cap closes, but the last, exactly
    summary="concatenate in arrival order and cut every max_length tokens",
    when="for plain text, where a sample cut in two does no harm",
    options=WrappedOptions,
    stream_order=stream_order,
    least_max_segments=lambda options: 1,
)
