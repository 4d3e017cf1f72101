"""Threshold filtering: related samples in one pack, samples that say nearly the same in different ones.

Source: arXiv 2408.09327. There samples are put in an order, which is cut every so many tokens; here packs are grown.
Two samples conflict, and should not share a pack, where the cosine of their embeddings is above a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from strategies.arrays import Arrays, Int16Array, Int64Array
from strategies.by_length import best_fit_decreasing, next_fit
from strategies.contract import Embedding, Plan, Preparation, Request, Strategy
from strategies.related.affinity import NO_THRESHOLD, ONE, products
from strategies.related.blocks import place_related
from strategies.related.clusters import chain, learn_centroids, nearest_centroid, neighbours_first
from strategies.related.relatedness import rates, relatedness
from strategies.related.walk import walk, walk_lists

MODES = ("pack", "path")
EMBEDDERS = ("tokens", "sentence-transformers", "column")

MOST_COSINE = 0.999
"""The highest threshold: vectors are rounded, so the cosine of two equal ones may be 0.9995, which must be above it."""

_EMBEDDER_OF = {
    "model": "sentence-transformers",
    "text": "sentence-transformers",
    "max_tokens": "sentence-transformers",
    "column": "column",
}
"""The embedder that an option belongs to."""

_BASELINES = ("shuffled_", "best_fit_decreasing_")
"""The prefixes of what is reported of the same samples, packed by next-fit in random order and by best fit."""

_PAIRED = 1 << 13  # embeddings all of whose pairs a run's threshold and rates of conflicts are taken from
_MOST_IN_BLOCK, _FEWEST_IN_BLOCK = 1 << 14, 3 << 10
_PRODUCTS = 450_000_000  # similarities looked at in a window, about, where blocks may shrink for it
_EXACT_WALK = 50_000  # samples up to which `path` looks at all that are left, at each step
_MOST_CLUSTERS = 1 << 10

_MOST_CONFLICTS_IN_BLOCK = 0.001
"""The share of the pairs in a block that may conflict where samples are dealt into blocks by clusters."""


@dataclass(frozen=True, kw_only=True)
class ThresholdFilteringOptions:
    """The options of `threshold-filtering`."""

    mode: str = field(
        default="pack",
        metadata={"help": "pack grows full packs; path is the published walk, cut by next-fit"},
    )
    threshold: str = field(
        default="percentile:2",
        metadata={
            "help": "too close to share a pack: percentile:P of all distances, cosine:X (pairs above it), or none"
        },
    )
    embedder: str = field(
        default="tokens", metadata={"help": "what relates samples: tokens, sentence-transformers or column"}
    )
    model: str = field(
        default="",
        metadata={"help": "model of sentence-transformers: a directory, a Hub id, or minilm", "is_path": True},
    )
    column: str = field(default="", metadata={"help": "column that holds a vector for each row, for embedder column"})
    text: str = field(
        default="", metadata={"help": "column that sentence-transformers embeds; where it is not set, `text`"}
    )
    max_tokens: int = field(
        default=0, metadata={"help": "tokens of each text that sentence-transformers reads; 0 stands for 128"}
    )
    block: int = field(
        default=0, metadata={"help": "samples compared with each other at once; 0 chooses by the window"}
    )

    def __post_init__(self) -> None:
        _choice("mode", self.mode, MODES)
        _choice("embedder", self.embedder, EMBEDDERS)
        parse_threshold(self.threshold)
        if self.embedder == "sentence-transformers" and not self.model:
            raise ValueError("embedder sentence-transformers needs model=PATH_OR_ID")
        if self.embedder == "column" and not self.column:
            raise ValueError("embedder column needs column=NAME")
        for name, embedder in _EMBEDDER_OF.items():
            if getattr(self, name) and self.embedder != embedder:
                raise ValueError(f"{name} has no effect with embedder {self.embedder}; add embedder={embedder}")
        if self.max_tokens < 0:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if self.block and self.mode == "path":
            raise ValueError("block has no effect with mode path, which knows none")
        if self.block and not 2 <= self.block <= 1 << 15:
            raise ValueError(f"block must be 0 or from 2 to {1 << 15}, not {self.block}")


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `ValueError` unless an option has one of its values."""
    if value not in choices:
        raise ValueError(f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, not {value!r}")


def parse_threshold(text: str) -> tuple[str, float]:
    """Return the kind of a threshold (percentile, cosine or none) and its number. Raises `ValueError`."""
    if not isinstance(text, str):
        raise ValueError(f"threshold must be a text such as 'cosine:0.9', not {text!r}")
    kind, _, value = text.partition(":")
    if text == "none":
        return "none", 0.0
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if kind == "percentile" and 0 < number < 100:
        return kind, number
    if kind == "cosine" and 0 <= number <= MOST_COSINE:
        return kind, number
    if kind == "cosine" and MOST_COSINE < number <= 1:
        raise ValueError(f"threshold cosine:{MOST_COSINE} is the highest: beyond it rounding decides what is the same")
    raise ValueError(
        "threshold must be percentile:P with P between 0 and 100, cosine:X with X from 0 to"
        f" {MOST_COSINE}, or none, not {text!r}"
    )


def embedding(options: ThresholdFilteringOptions) -> Embedding:
    """Return the vectors that the options ask for."""
    if options.embedder == "sentence-transformers":
        return Embedding(
            embedder=options.embedder,
            model=options.model,
            column=options.text or "text",
            max_tokens=options.max_tokens or 128,
        )
    return Embedding(embedder=options.embedder, column=options.column)


def prepare(sample: Int16Array, most_rows: int, options: ThresholdFilteringOptions) -> Arrays:
    """Compute once for a run the threshold, as a product of embeddings, and cluster centroids where they are used.

    sample: embeddings drawn from the run, in random order.  # shape: (num_samples, num_dimensions)
    most_rows: the most rows in one window.

    Returns `threshold`, a number, and maybe `centroids`.  # shapes: (), (num_clusters, num_dimensions)
    """
    kind, value = parse_threshold(options.threshold)
    if kind == "none":
        threshold = int(NO_THRESHOLD)
    elif kind == "cosine":
        threshold = math.floor(value * ONE)
    else:
        threshold = _percentile(sample[:_PAIRED], value)
    preparation: Arrays = {"threshold": np.array(threshold, np.int64)}
    if options.mode == "path":
        centroids = _list_centroids(sample, most_rows)
    else:
        centroids = _block_centroids(sample, threshold, _num_blocks(most_rows, options))
    if centroids is not None:
        preparation["centroids"] = centroids
    return preparation


def _list_centroids(sample: Int16Array, most_rows: int) -> Int16Array | None:
    """Return the centroids of the lists that the walk looks into; None where it looks at all that are left."""
    if most_rows <= _EXACT_WALK:
        return None
    return learn_centroids(sample, min(math.isqrt(most_rows), _MOST_CLUSTERS, len(sample)))


def _block_centroids(sample: Int16Array, threshold: int, num_blocks: int) -> Int16Array | None:
    """Return the centroids of clusters that samples are dealt into blocks by; None where they are dealt at random.

    Clusters bring related samples together, and conflicts as well: where these are many, they cannot be parted.
    """
    paired = sample[:_PAIRED]
    if num_blocks < 2 or _conflict_rate(paired, threshold, 1) > _MOST_CONFLICTS_IN_BLOCK:
        return None
    centroids = learn_centroids(sample, min(4 * num_blocks, _MOST_CLUSTERS, len(sample)))
    in_chain = _chained(np.arange(len(paired)), paired, centroids)
    rate = _conflict_rate(paired[in_chain], threshold, num_blocks)
    return centroids if rate <= _MOST_CONFLICTS_IN_BLOCK else None


def _conflict_rate(sample: Int16Array, threshold: int, num_blocks: int) -> float:
    """Return the share of pairs that conflict, of those in the blocks that a sample is cut into."""
    conflicts = pairs = 0
    for block in np.array_split(sample, num_blocks):
        conflicting = products(block) > threshold
        np.fill_diagonal(conflicting, False)
        conflicts += int(conflicting.sum()) // 2
        pairs += len(block) * (len(block) - 1) // 2
    return conflicts / pairs if pairs else 0.0


def _chained(order: Int64Array, embeddings: Int16Array, centroids: Int16Array) -> Int64Array:
    """Return an order of samples, those of neighbouring clusters together; those of one cluster as they were."""
    place_in_chain = np.argsort(chain(centroids))
    return order[np.argsort(place_in_chain[nearest_centroid(embeddings[order], centroids)], kind="stable")]


def _percentile(sample: Int16Array, percentile: float) -> int:
    """Return the product that so many per cent of all pairs are above, less those that equal it."""
    if len(sample) < 2:
        return int(NO_THRESHOLD)
    every = products(sample)[np.triu_indices(len(sample), 1)]
    rank = len(every) - 1 - int(percentile / 100 * (len(every) - 1))
    return int(np.partition(every, rank)[rank])


def _num_blocks(num_segments: int, options: ThresholdFilteringOptions) -> int:
    """Return the number of blocks of a window."""
    block = options.block or min(_MOST_IN_BLOCK, max(_FEWEST_IN_BLOCK, _PRODUCTS // max(1, num_segments)))
    return max(1, -(-num_segments // block))


def place(request: Request) -> Plan:
    """Plan a window in the mode of the options; the report has the relatedness of the plan and of two baselines.

    It costs what `place_related` or `walk` does. Source: arXiv 2408.09327; mode `pack` is ours.
    """
    assert request.embeddings is not None, "threshold-filtering needs embeddings"
    if not len(request.lengths):
        return Plan(segment=np.empty(0, np.int64), pack_offsets=np.zeros(1, np.int64))
    threshold = int(request.preparation["threshold"])
    num_forced: int | None
    shuffled = next_fit.place_in_order(request, request.draws.permutation(len(request.lengths)))
    if request.options.mode == "path":
        order, num_forced = _walk_window(request, request.embeddings, threshold)
        plan = next_fit.place_in_order(request, order)
    else:
        plan = _pack_window(request, request.embeddings, threshold)
        num_forced = None
    report: dict[str, int | float] = {}
    plans = (plan, shuffled, best_fit_decreasing.place(request))
    for prefix, each in zip(("", *_BASELINES), plans, strict=True):
        report |= {prefix + key: value for key, value in relatedness(request, each, threshold).items()}
    report["forced_placements"] = report["segments_in_conflict"] if num_forced is None else num_forced
    return Plan(segment=plan.segment, pack_offsets=plan.pack_offsets, report=report)


def _pack_window(request: Request, embeddings: Int16Array, threshold: int) -> Plan:
    """Plan in mode `pack`, neighbouring clusters together where there are clusters."""
    order = request.draws.permutation(len(request.lengths))
    if "centroids" in request.preparation:
        order = _chained(order, embeddings, request.preparation["centroids"])
    num_blocks = _num_blocks(len(order), request.options)
    is_limit = parse_threshold(request.options.threshold)[0] == "cosine"
    packs = place_related(request, embeddings, threshold, order, num_blocks, is_limit=is_limit)
    offsets = np.zeros(len(packs) + 1, np.int64)
    np.cumsum([len(pack) for pack in packs], out=offsets[1:])
    return Plan(segment=np.concatenate(packs), pack_offsets=offsets)


def _walk_window(request: Request, embeddings: Int16Array, threshold: int) -> tuple[Int64Array, int]:
    """Take the walk of mode `path` from the first sample, as published."""
    if "centroids" not in request.preparation or len(embeddings) <= _EXACT_WALK:
        return walk(embeddings, threshold, 0)
    centroids = request.preparation["centroids"]
    return walk_lists(embeddings, threshold, 0, nearest_centroid(embeddings, centroids), neighbours_first(centroids))


def figures(sums: Mapping[str, int | float], preparation: Preparation) -> dict[str, int | float]:
    """Return the figures of a run, from the summed reports of its windows."""
    threshold = int(preparation["threshold"])
    values: dict[str, int | float] = {}
    for prefix in ("", *_BASELINES):
        values |= rates(sums, prefix)
    if threshold == NO_THRESHOLD:  # nothing can conflict
        return {name: value for name, value in values.items() if not name.endswith("conflict_rate")}
    values["threshold"] = min(1.0, round(threshold / ONE, 6))
    values["forced_placements"] = sums.get("forced_placements", 0)
    return values


STRATEGY = Strategy(
    name="threshold-filtering",
    place=place,
    aliases=("tfp",),
    summary="related samples in one pack, near-duplicates in different ones, packs full",
    when="when a pack is attended to as a whole, or near-duplicates must not meet",
    options=ThresholdFilteringOptions,
    embedding=embedding,
    embedding_options=("embedder", *_EMBEDDER_OF),
    least_max_segments=lambda options: 1,
    prepare=prepare,
    figures=figures,
)
