"""What a strategy is given, what it returns, and the one place where its answer is checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from strategies.compiled import kernel
from strategies.draws import Draws

Int16Array = npt.NDArray[np.int16]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
Prepared = Mapping[str, npt.NDArray[Any]]


SAMPLED = 1 << 16
"""Embeddings that a strategy's `prepare` is given, at most."""


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """A strategy with nothing to set."""


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Which vectors a strategy wants to see of the samples."""

    embedder: str
    """tokens, sentence-transformers or column."""

    model: str = ""
    """Of sentence-transformers: a directory or a Hub id."""

    column: str = ""
    """Column to embed (sentence-transformers) or to take as it is (column)."""

    max_tokens: int = 0
    """Of sentence-transformers: tokens of each text that the model reads."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One window to be planned."""

    lengths: Int32Array
    """Tokens of each segment, 1..capacity, in arrival order.  # shape: (num_segments,)"""

    capacity: int
    """Tokens a pack may hold."""

    draws: Draws
    """The only source of randomness."""

    options: Any = NoOptions()
    """An instance of the strategy's own options dataclass."""

    embeddings: Int16Array | None = None
    """Of each segment's sample, see `strategies.related.affinity`; for strategies that embed.
    # shape: (num_segments, num_dimensions)"""

    prepared: Prepared = field(default_factory=dict)
    """What the strategy's `prepare` found for the whole run."""

    num_threads: int = 1
    """Threads it may use; the plan does not depend on them."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which segments stand in which pack, in which order (compressed sparse rows).

    Pack p holds the segments `segment[pack_offsets[p]:pack_offsets[p + 1]]`.
    """

    segment: Int64Array
    """Indices into the request's lengths, a permutation.  # shape: (num_segments,)"""

    pack_offsets: Int64Array
    """Where each pack begins, and the end.  # shape: (num_packs + 1,)"""

    report: Mapping[str, int | float] = field(default_factory=dict)
    """Sums and counts; those of several windows are added up."""

    @property
    def num_packs(self) -> int:
        """Packs of the plan."""
        return len(self.pack_offsets) - 1


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A named way to place segments into packs.

    `place` is a pure function: it reads no file, logs nothing, draws only from the request, and
    gives the same plan for the same request.
    """

    name: str
    place: Callable[[Request], Plan]

    summary: str
    """What it does, in one line."""

    when: str
    """When to choose it, in one line."""

    aliases: tuple[str, ...] = ()

    options: type = NoOptions
    """A frozen dataclass of int, float, bool or str fields with defaults; each field's metadata
    has `help`. A `ValueError` from `__post_init__` is shown to the user."""

    capacity: Callable[[int, Any], int] = lambda max_length, options: max_length
    """(max_length, options) -> tokens a pack may hold."""

    stream_order: Callable[[int, Draws, Any], Int64Array] | None = None
    """Set by strategies that cut the concatenated tokens every `capacity`, whatever the policy for
    over-long samples: (num_samples, draws, options) -> the order of concatenation.
    # shape: (num_samples,)"""

    embedding: Callable[[Any], Embedding] | None = None
    """options -> the vectors it wants; None for strategies that need only lengths."""

    embedding_options: tuple[str, ...] = ()
    """The options that `embedding` looks at."""

    prepare: Callable[[Int16Array, int, Any], Prepared] | None = None
    """What has to be found once for a whole run, such as a threshold; stored, and given to every `place`:
    (embeddings drawn at random from the run, most rows in one window, options) -> named arrays."""

    figures: Callable[[Mapping[str, int | float], Prepared], dict[str, int | float]] | None = None
    """What is told of a run: (the summed reports of its plans, what was prepared) -> figures by name. None tells the
    sums."""


class ContractError(Exception):
    """A strategy returned a plan that is not one."""


def check(plan: Plan, request: Request, name: str) -> Plan:
    """Return `plan` if it places every segment once, over-fills no pack and leaves none empty.

    O(num_segments). Raises `ContractError`, naming the strategy, otherwise.
    """
    segment, offsets = plan.segment, plan.pack_offsets
    if segment.dtype != np.int64 or offsets.dtype != np.int64 or segment.ndim != 1 or offsets.ndim != 1:
        raise ContractError(f"strategy {name!r} broke its contract: segment and pack_offsets must be int64 vectors")
    fault, where = _find_fault(segment, offsets, request.lengths, request.capacity)
    if fault:
        raise ContractError(f"strategy {name!r} broke its contract: {_FAULTS[fault].format(where)}")
    return plan


_FAULTS = {
    1: "pack_offsets must run from 0 to the number of segments",
    2: "pack {} is empty",
    3: "pack {} is over capacity",
    4: "segment index {} does not exist",
    5: "segment {} stands in more than one place",
    6: "the plan does not hold as many segments as the request",
}


@kernel
def _find_fault(segment: Int64Array, offsets: Int64Array, lengths: Int32Array, capacity: int) -> tuple[int, int]:
    num_segments = lengths.shape[0]
    if segment.shape[0] != num_segments:
        return 6, 0
    num_packs = offsets.shape[0] - 1
    if num_packs < 0 or offsets[0] != 0 or offsets[num_packs] != num_segments:
        return 1, 0
    placed = np.zeros(num_segments, np.uint8)
    for pack in range(num_packs):
        if offsets[pack + 1] <= offsets[pack] or offsets[pack + 1] > num_segments:
            return 2, pack
        load = np.int64(0)
        for i in range(offsets[pack], offsets[pack + 1]):
            s = segment[i]
            if s < 0 or s >= num_segments:
                return 4, s
            if placed[s]:
                return 5, s
            placed[s] = 1
            load += lengths[s]
        if load > capacity:
            return 3, pack
    return 0, 0
