"""What a strategy is given, what it returns, and the one place where its answer is checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

import numpy as np

from strategies.arrays import AnyArray, Int16Array, Int32Array, Int64Array
from strategies.compiled import kernel
from strategies.draws import Draws

Preparation = Mapping[str, AnyArray]
"""What a strategy's `prepare` computes once for a whole run, as named arrays."""

PREPARATION_SAMPLES = 1 << 16
"""The samples whose embeddings a strategy's `prepare` is given, at most."""


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The options of a strategy that has nothing to set."""


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Which vectors a strategy wants to see of the samples."""

    embedder: str
    """What makes the vectors: tokens, sentence-transformers or column."""

    model: str = ""
    """The model of embedder sentence-transformers: a directory or a Hub id."""

    column: str = ""
    """The column that embedder sentence-transformers reads as text, or embedder column takes as it is."""

    max_tokens: int = 0
    """How many tokens of each text the model of embedder sentence-transformers reads."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One window that a strategy is asked to plan. A strategy changes nothing in it."""

    lengths: Int32Array
    """The tokens of each segment, 1..capacity, in arrival order.  # shape: (num_segments,)"""

    capacity: int
    """How many tokens a pack may hold."""

    max_segments: int | None = None
    """How many segments a pack may hold; None where nothing but tokens bounds them. It is given to no strategy that
    does not say in `least_max_segments` that it keeps to it."""

    draws: Draws
    """The only source of randomness, a stream of this window's own."""

    options: Any = NoOptions()
    """An instance of the strategy's own options dataclass."""

    embeddings: Int16Array | None = None
    """The embedding of each segment's sample, as `strategies.related.affinity` defines it; None for strategies that
    look at lengths alone.  # shape: (num_segments, num_dimensions)"""

    preparation: Preparation = field(default_factory=dict)
    """What the strategy's `prepare` returned for the whole run; empty for strategies without one."""

    num_threads: int = 1
    """How many threads the strategy may use; the plan does not depend on them."""

    @property
    def most_segments(self) -> int:
        """How many segments a pack may hold, as a number in any case: where there is no cap, all of them."""
        return min(self.max_segments or len(self.lengths), len(self.lengths))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which segments stand in which pack, in which order (compressed sparse rows).

    Pack p holds the segments `segment[pack_offsets[p]:pack_offsets[p + 1]]`.
    """

    segment: Int64Array
    """Indices into the request's lengths, a permutation.  # shape: (num_segments,)"""

    pack_offsets: Int64Array
    """Where each pack begins in `segment`, and the end.  # shape: (num_packs + 1,)"""

    report: Mapping[str, int | float] = field(default_factory=dict)
    """Sums and counts by name; those of several windows are added up."""

    @property
    def num_packs(self) -> int:
        """The number of packs."""
        return len(self.pack_offsets) - 1


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A named way to place segments into packs.

    `place` is a pure function: it reads no file, logs nothing, draws only from the request, and gives the same plan
    for the same request.
    """

    name: str
    """What it is called in the command line and in manifests; for a plug-in also the name of its entry point."""

    place: Callable[[Request], Plan]
    """The strategy itself: it plans one window."""

    summary: str
    """What it does, in one line."""

    when: str
    """When to choose it, in one line."""

    aliases: tuple[str, ...] = ()
    """Other names by which it is found."""

    options: type = NoOptions
    """What users can set: a frozen dataclass, whose fields each have an int, float, bool or str for their default and a
    `help` in their metadata; `is_path` there marks a path, of which only the content counts. A `ValueError` from its
    `__post_init__` is shown to the user."""

    capacity: Callable[[int, Any], int] = lambda max_length, options: max_length
    """How many tokens a pack may hold, at least max_length: (max_length, options) -> tokens."""

    least_max_segments: Callable[[Any], int] | None = None
    """The lowest `Request.max_segments` that it keeps to, options -> segments, such as `lambda options: 1`; None for
    strategies that keep to none."""

    stream_order: Callable[[int, Draws, Any], Int64Array] | None = None
    """The order in which samples are concatenated, (num_samples, draws, options) -> a permutation; set by strategies
    that cut the concatenated tokens every `capacity`, whatever the policy for over-long samples.
    # shape: (num_samples,)"""

    embedding: Callable[[Any], Embedding] | None = None
    """Which vectors it wants, options -> embedding; None for strategies that look at lengths alone."""

    embedding_options: tuple[str, ...] = ()
    """The names of the options that `embedding` reads."""

    prepare: Callable[[Int16Array, int, Any], Preparation] | None = None
    """What has to be computed once for a whole run, such as a threshold, and is then part of every request:
    (embeddings drawn at random from the run, possibly none; most rows in one window; options) -> named arrays."""

    figures: Callable[[Mapping[str, int | float], Preparation], dict[str, int | float]] | None = None
    """How a run is reported: (the summed reports of its plans, its preparation) -> figures by name. With None the
    sums themselves are reported."""

    def check_max_segments(self, max_segments: int | None, options: Any) -> None:
        """Raise `ValueError`, in words for the user, unless it keeps to a cap on the segments of a pack."""
        if max_segments is None:
            return
        if self.least_max_segments is None:
            raise ValueError(f"strategy {self.name!r} keeps to no cap on the segments of a pack")
        least = self.least_max_segments(options)
        if max_segments < least:
            settings = ", ".join(f"{name}={value}" for name, value in self.settings(options).items())
            raise ValueError(f"strategy {self.name!r} ({settings}) needs packs of {least} segments, not {max_segments}")

    @property
    def names(self) -> tuple[str, ...]:
        """Its name, then its aliases."""
        return (self.name, *self.aliases)

    def settings(self, options: Any) -> dict[str, Any]:
        """Return all options by name, fit for JSON, without paths (metadata `is_path`): only their content counts."""
        return {each.name: getattr(options, each.name) for each in fields(self.options) if not _is_path(each)}

    def changed(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of the settings that are not at their option's default, again without paths.

        The identity of a run holds these alone, so that an option added later changes no identity. Raises `KeyError`
        for a setting that is no option.
        """
        options = {each.name: each for each in fields(self.options)}
        return {
            name: value
            for name, value in settings.items()
            if value != options[name].default and not _is_path(options[name])
        }


class ContractError(Exception):
    """A strategy does not keep to the contract."""


def check_strategy(strategy: Strategy) -> None:
    """Raise `ContractError` unless users can name the strategy, read what it is for, and set its options."""
    broken = f"strategy {strategy.name!r} broke its contract:"
    if not isinstance(strategy.aliases, tuple):
        raise ContractError(f"{broken} its aliases must be a tuple")
    if not all(isinstance(each, str) and each for each in (*strategy.names, strategy.summary, strategy.when)):
        raise ContractError(f"{broken} its names, summary and when must be texts that are not empty")
    parameters = getattr(strategy.options, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise ContractError(f"{broken} its options must be a frozen dataclass")
    for each in fields(strategy.options):
        if type(each.default) not in (int, float, bool, str):
            raise ContractError(f"{broken} option {each.name!r} needs a default, an int, float, bool or str")
        if not each.metadata.get("help"):
            raise ContractError(f"{broken} option {each.name!r} needs a `help` in its metadata")


def check(plan: Plan, request: Request, name: str) -> Plan:
    """Return `plan` if it places every segment once, over-fills no pack, neither by tokens nor by segments, and leaves
    none empty.

    Raises `ContractError`, naming the strategy, otherwise. O(num_segments).
    """
    if not isinstance(plan, Plan) or not all(
        isinstance(each, np.ndarray) for each in (plan.segment, plan.pack_offsets)
    ):
        raise ContractError(f"strategy {name!r} broke its contract: it must return a Plan of numpy vectors")
    segment, offsets = plan.segment, plan.pack_offsets
    if segment.dtype != np.int64 or offsets.dtype != np.int64 or segment.ndim != 1 or offsets.ndim != 1:
        raise ContractError(f"strategy {name!r} broke its contract: segment and pack_offsets must be int64 vectors")
    fault, where = _find_fault(segment, offsets, request.lengths, request.capacity, request.most_segments)
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
    7: "pack {} holds more segments than max_segments",
}


@kernel
def _find_fault(
    segment: Int64Array, offsets: Int64Array, lengths: Int32Array, capacity: int, most_segments: int
) -> tuple[int, int]:
    """Return the number of a fault, 0 for none, and the pack or segment where it is."""
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
        if offsets[pack + 1] - offsets[pack] > most_segments:
            return 7, pack
    return 0, 0


def _is_path(option: Field[Any]) -> bool:
    return bool(option.metadata.get("is_path"))
