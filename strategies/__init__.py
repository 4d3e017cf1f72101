"""Strategies: pure functions from segment lengths to packs. Nothing here touches a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from strategies.contract import SAMPLED, ContractError, Int16Array, NoOptions, Plan, Prepared, Request, Strategy, check
from strategies.draws import Draws
from strategies.registry import all_names, find
from strategies.related.affinity import MOST_DIMENSIONS, quantise

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
    For strategies that relate samples the plan's `report` has the figures of the manifest, such as
    `mean_in_pack_similarity`. A zero vector is like nothing.

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
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, not {num_threads}")
    settings = _settings(chosen, options)
    vectors = _embeddings(chosen, embeddings, len(array))
    prepared: Prepared = {}
    if chosen.prepare is not None and vectors is not None:
        draws = Draws(f"seed={seed}/prepare/{chosen.name}")
        prepared = chosen.prepare(vectors[draws.sample(len(vectors), SAMPLED)], len(vectors), settings)
    request = Request(
        lengths=array.astype(np.int32),
        capacity=chosen.capacity(max_length, settings),
        draws=Draws(f"seed={seed}/window=0/{chosen.name}"),
        options=settings,
        embeddings=vectors,
        prepared=prepared,
        num_threads=num_threads,
    )
    plan = check(chosen.place(request), request, chosen.name)
    return plan if chosen.figures is None else replace(plan, report=chosen.figures(plan.report, prepared))


def _settings(strategy: Strategy, options: Mapping[str, Any]) -> Any:
    known = [field.name for field in fields(strategy.options)]
    for name in options:
        if name not in known:
            raise TypeError(f"strategy {strategy.name!r} has no option {name!r} (it has: {', '.join(known) or 'none'})")
        if name in strategy.embedding_options:
            raise ValueError(f"{name} says where a command finds vectors; here they are given as embeddings")
    return strategy.options(**options)


def _embeddings(strategy: Strategy, given: npt.ArrayLike | None, num_samples: int) -> Int16Array | None:
    if strategy.embedding is None:
        if given is not None:
            raise ValueError(f"{strategy.name!r} looks at lengths only and has no use for embeddings")
        return None
    if given is None:
        raise ValueError(f"{strategy.name!r} relates samples: give it their embeddings")
    values = np.asarray(given, np.float32)
    if not num_samples and not values.size:
        return np.empty((0, 1), np.int16)
    if values.ndim != 2 or len(values) != num_samples:
        raise ValueError(f"embeddings must be a vector for each of {num_samples} samples, not of shape {values.shape}")
    if values.shape[1] > MOST_DIMENSIONS:
        raise ValueError(f"embeddings may have {MOST_DIMENSIONS} dimensions at most, not {values.shape[1]}")
    for sample in np.flatnonzero(~np.isfinite(values).all(axis=1))[:1]:
        raise ValueError(f"the embedding of sample {sample} holds a number that is not finite")
    return quantise(values)
