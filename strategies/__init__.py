"""Strategies: pure functions from segment lengths to packs. Nothing here touches a file."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from strategies.contract import ContractError, NoOptions, Plan, Request, Strategy, check
from strategies.draws import Draws
from strategies.registry import all_names, find

__all__ = ["ContractError", "Draws", "NoOptions", "Plan", "Request", "Strategy", "all_names", "find", "pack"]


def pack(
    lengths: npt.ArrayLike,
    max_length: int,
    strategy: str = "best-fit-decreasing",
    *,
    seed: int = 0,
    **options: Any,
) -> Plan:
    """Plan packs for samples of the given lengths.

    lengths: tokens of each sample, 1..max_length.  # shape: (num_samples,)
    options: the strategy's own, for instance `batch_size=8` for "minibatch".

    Returns a `Plan` of int64 arrays: pack p holds samples `segment[pack_offsets[p]:pack_offsets[p + 1]]`.
    Raises `ValueError` for an unknown strategy, a length outside 1..max_length, or a strategy that cuts
    samples ("wrapped"), because a plan places whole ones; `TypeError` for an unknown option.
    """
    chosen = find(strategy)
    if chosen.stream_order is not None:
        raise ValueError(f"{chosen.name!r} cuts samples, which a plan over whole samples cannot express")
    array = np.asarray(lengths)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError("lengths must be a vector of integers")
    outside = np.flatnonzero((array < 1) | (array > max_length))
    if len(outside):
        raise ValueError(f"length {array[outside[0]]} of sample {outside[0]} is outside 1..{max_length}")
    settings = chosen.options(**options)
    request = Request(
        lengths=array.astype(np.int32),
        capacity=chosen.capacity(max_length, settings),
        draws=Draws(f"seed={seed}/window=0/{chosen.name}"),
        options=settings,
    )
    return check(chosen.place(request), request, chosen.name)
