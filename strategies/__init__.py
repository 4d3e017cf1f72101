"""Strategies: pure functions from segment lengths to packs. Nothing here touches a file."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from strategies.affinity import quantise
from strategies.contract import SAMPLED, ContractError, NoOptions, Plan, Prepared, Request, Strategy, check
from strategies.draws import Draws
from strategies.registry import all_names, find

__all__ = ["ContractError", "Draws", "NoOptions", "Plan", "Request", "Strategy", "all_names", "find", "pack"]


def pack(
    lengths: npt.ArrayLike,
    max_length: int,
    strategy: str = "best-fit-decreasing",
    *,
    seed: int = 0,
    embeddings: npt.ArrayLike | None = None,
    num_threads: int = 1,
    **options: Any,
) -> Plan:
    """Plan packs for samples of the given lengths.

    lengths: tokens of each sample, 1..max_length.  # shape: (num_samples,)
    embeddings: a vector of any length for each sample, for strategies that relate samples
    ("threshold-filtering").  # shape: (num_samples, num_dimensions)
    num_threads: threads it may use; the plan does not depend on them.
    options: the strategy's own, for instance `batch_size=8` for "minibatch".

    Returns a `Plan` of int64 arrays: pack p holds samples `segment[pack_offsets[p]:pack_offsets[p + 1]]`.
    Raises `ValueError` for an unknown strategy, a length outside 1..max_length, embeddings that are missing or not
    one finite vector for each sample, or a strategy that cuts samples ("wrapped"), because a plan places whole ones;
    `TypeError` for an unknown option.
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
    vectors = None
    prepared: Prepared = {}
    if chosen.embedding is not None:
        if embeddings is None:
            raise ValueError(f"{chosen.name!r} relates samples: give it their embeddings")
        values = np.asarray(embeddings, np.float32)
        if values.ndim != 2 or len(values) != len(array) or not np.isfinite(values).all():
            raise ValueError("embeddings must be one finite vector for each sample")
        vectors = quantise(values)
    if chosen.prepare is not None and vectors is not None:
        draws = Draws(f"seed={seed}/prepare/{chosen.name}")
        prepared = chosen.prepare(vectors[draws.sample(len(vectors), SAMPLED)], len(vectors), draws, settings)
    request = Request(
        lengths=array.astype(np.int32),
        capacity=chosen.capacity(max_length, settings),
        draws=Draws(f"seed={seed}/window=0/{chosen.name}"),
        options=settings,
        embeddings=vectors,
        prepared=prepared,
        num_threads=num_threads,
    )
    return check(chosen.place(request), request, chosen.name)
