"""A plan for given lengths in one call, for callers who have no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from strategies.arrays import Int16Array, Int32Array
from strategies.contract import PREPARATION_SAMPLES, Plan, Preparation, Request, Strategy, check
from strategies.draws import Draws
from strategies.registry import find
from strategies.related.affinity import MOST_DIMENSIONS, quantise


def pack(
    lengths: npt.ArrayLike,
    max_length: int,
    strategy: str = "best-fit-decreasing",
    *,
    max_segments: int | None = None,
    seed: int = 0,
    embeddings: npt.ArrayLike | None = None,
    num_threads: int = 1,
    **options: Any,
) -> Plan:
    """Plan packs for samples of the given lengths.

    lengths: tokens of each sample, 1..max_length.  # shape: (num_samples,)
    max_segments: how many samples a pack may hold; None for any number.
    embeddings: a vector of any length for each sample, for strategies that relate samples
    ("threshold-filtering"). A zero vector is similar to nothing.  # shape: (num_samples, num_dimensions)
    num_threads: threads it may use; the plan does not depend on them.
    options: the strategy's own, for instance `batch_size=8` for "minibatch".

    Returns a `Plan` of int64 arrays: pack p holds samples `segment[pack_offsets[p]:pack_offsets[p + 1]]`.
    For strategies that relate samples the plan's `report` has the figures of the manifest, such as
    `mean_in_pack_similarity`. It costs what the strategy costs, and O(num_samples) for checking the plan.

    Raises `ValueError` for an unknown strategy, a length outside 1..max_length, embeddings that are missing or not
    one finite vector for each sample, a cap on samples that the strategy does not keep to, or a strategy that cuts
    samples ("wrapped"), because a plan places whole ones; `TypeError` for an unknown option.
    """
    chosen = find(strategy)
    if chosen.stream_order is not None:
        raise ValueError(f"{chosen.name!r} cuts samples, which a plan over whole samples cannot express")
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, not {num_threads}")
    whole = _whole_lengths(lengths, max_length)
    settings = _resolve_options(chosen, options)
    if max_segments is not None and max_segments < 1:
        raise ValueError(f"max_segments must be at least 1, not {max_segments}")
    chosen.check_max_segments(max_segments, settings)
    vectors = _quantise_embeddings(chosen, embeddings, len(whole))
    preparation: Preparation = {}
    if chosen.prepare is not None and vectors is not None:
        draws = Draws(f"seed={seed}/prepare/{chosen.name}")
        sample = vectors[draws.sample(len(vectors), PREPARATION_SAMPLES)]
        preparation = chosen.prepare(sample, len(vectors), settings)
    request = Request(
        lengths=whole,
        capacity=chosen.capacity(max_length, settings),
        max_segments=max_segments,
        draws=Draws(f"seed={seed}/window=0/{chosen.name}"),
        options=settings,
        embeddings=vectors,
        preparation=preparation,
        num_threads=num_threads,
    )
    plan = check(chosen.place(request), request, chosen.name)
    return plan if chosen.figures is None else replace(plan, report=chosen.figures(plan.report, preparation))


def _whole_lengths(lengths: npt.ArrayLike, max_length: int) -> Int32Array:
    """Check the lengths a caller gave.  # shape: (num_samples,)"""
    values = np.asarray(lengths)
    if values.size == 0:
        values = values.astype(np.int64)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError("lengths must be a vector of integers")
    outside = np.flatnonzero((values < 1) | (values > max_length))
    if len(outside):
        raise ValueError(f"length {values[outside[0]]} of sample {outside[0]} is outside 1..{max_length}")
    return values.astype(np.int32)


def _resolve_options(strategy: Strategy, options: Mapping[str, Any]) -> Any:
    """Make the strategy's own options dataclass."""
    names = [field.name for field in fields(strategy.options)]
    for name in options:
        if name not in names:
            raise TypeError(f"strategy {strategy.name!r} has no option {name!r} (it has: {', '.join(names) or 'none'})")
        if name in strategy.embedding_options:
            raise ValueError(f"{name} says where a command finds vectors; here they are given as embeddings")
    return strategy.options(**options)


def _quantise_embeddings(strategy: Strategy, embeddings: npt.ArrayLike | None, num_samples: int) -> Int16Array | None:
    """Check the embeddings a caller gave, and quantise them.  # shape: (num_samples, num_dimensions)"""
    if strategy.embedding is None:
        if embeddings is not None:
            raise ValueError(f"{strategy.name!r} looks at lengths only and has no use for embeddings")
        return None
    if embeddings is None:
        raise ValueError(f"{strategy.name!r} relates samples: give it their embeddings")
    values = np.asarray(embeddings, np.float32)
    if not num_samples and not values.size:
        return np.empty((0, 1), np.int16)
    if values.ndim != 2 or len(values) != num_samples:
        raise ValueError(f"embeddings must be a vector for each of {num_samples} samples, not of shape {values.shape}")
    if values.shape[1] > MOST_DIMENSIONS:
        raise ValueError(f"embeddings may have {MOST_DIMENSIONS} dimensions at most, not {values.shape[1]}")
    for sample in np.flatnonzero(~np.isfinite(values).all(axis=1))[:1]:
        raise ValueError(f"the embedding of sample {sample} holds a number that is not finite")
    return quantise(values)
