"""Planning one window: integers in, integers out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np

from pipeline.base.arrays import load_arrays, save_arrays
from pipeline.base.dealing.stages import Kind, Stage, TaskContext
from pipeline.base.engine import LocalEngine, Monitor
from pipeline.base.errors import StrategyError
from pipeline.base.staging import Staging
from pipeline.base.storage import FileFacts
from pipeline.base.words import first_line
from pipeline.embedding.vectors import Vectors
from pipeline.format.counts import Counts, Loss
from pipeline.format.options import PackOptions
from pipeline.packing.gather import are_targets
from pipeline.packing.segments import (
    Account,
    OverlongSamples,
    Segments,
    account,
    stream_segments,
    whole_segments,
)
from pipeline.packing.setup import ConfiguredStrategy, configure
from pipeline.reading.scan import MOST_TOKENS, RowFacts, scan_window
from pipeline.reading.windows import SplitRows, Window
from strategies import ContractError, Draws, Plan, Request
from strategies.arrays import Int16Array, Int32Array, Int64Array
from strategies.contract import Preparation, check
from strategies.registry import BUILT_IN


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """Which segments stand in which pack of a window, pack after pack."""

    row: Int64Array
    """Each segment's sample: its row, counted within the window.  # shape: (num_segments,)"""

    start: Int32Array
    """Where in its sample each segment begins, after removing padding.  # shape: (num_segments,)"""

    length: Int32Array
    """Tokens of each segment.  # shape: (num_segments,)"""

    skip: Int32Array
    """Padding before each sample's first token; -1 where padding is scattered.  # shape: (num_segments,)"""

    pack_offsets: Int64Array
    """First segment of each pack, and the end.  # shape: (num_packs + 1,)"""

    shard_offsets: Int64Array
    """First pack of each shard, and the end.  # shape: (num_shards + 1,)"""

    def save(self, path: Path) -> FileFacts:
        """Write it durably."""
        return save_arrays(path, vars(self))

    @staticmethod
    def load(path: Path) -> WindowPlan:
        """Read what `save` wrote."""
        return WindowPlan(**load_arrays(path))

    def shard(self, number: int) -> WindowPlan:
        """The packs of one shard, as a plan of their own."""
        first, last = (int(pack) for pack in self.shard_offsets[number : number + 2])
        begin, end = int(self.pack_offsets[first]), int(self.pack_offsets[last])
        segments = {name: np.array(getattr(self, name)[begin:end]) for name in ("row", "start", "length", "skip")}
        return WindowPlan(
            **segments,
            pack_offsets=self.pack_offsets[first : last + 1] - begin,
            shard_offsets=np.array([0, last - first], np.int64),
        )


class ShardSize(msgspec.Struct, frozen=True, kw_only=True):
    """What a shard will hold."""

    packs: int
    tokens: int


class WindowSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of a planned window."""

    counts: Counts
    overlong: OverlongSamples
    packs: int
    segments: int
    most_segments: int
    """Segments of the pack that has most."""

    sum_length_squared: int
    shards: list[ShardSize]
    report: dict[str, int | float]
    """What the strategy reported: sums and counts."""


@dataclass(frozen=True, kw_only=True)
class PlanTask:
    """One window to be planned."""

    split: str
    window: Window
    path: Path
    """The file to be written: a `WindowPlan`."""


@dataclass(frozen=True, kw_only=True)
class PlanStage(Stage[PlanTask, tuple[WindowSummary, str]]):
    """Planning windows: each task gives what is told of a window, and the content hash of its plan."""

    kind: ClassVar[Kind] = "plan"
    title: ClassVar[str] = "planning"
    noun: ClassVar[str] = "plan"
    takes_all_cores: ClassVar[bool] = True

    rows: Mapping[str, SplitRows]
    """By split."""

    options: PackOptions
    vectors: Vectors | None
    """The vectors of all rows, where the strategy relates samples."""

    def units(self, task: PlanTask) -> int:
        """Tokens of the window."""
        return task.window.num_tokens

    def name(self, task: PlanTask) -> str:
        """The name of the plan's file."""
        return task.path.name

    def words(self, task: PlanTask) -> str:
        """The window."""
        return task.window.words(task.split)

    def finished(self, task: PlanTask, staging: Staging) -> tuple[WindowSummary, str] | None:
        """As of `Stage`."""
        record = staging.finished(task.path)
        if record is None or record["window"] != asdict(task.window):
            return None
        return msgspec.convert(record["summary"], WindowSummary), record["file"]["xxh3_128"]

    def do(self, task: PlanTask, context: TaskContext) -> tuple[WindowSummary, str]:
        """Raises as `plan_window`."""
        facts, summary = plan_window(task, self, context.engine, context.monitor)
        context.staging.record(task.path, facts, window=asdict(task.window), summary=msgspec.to_builtins(summary))
        return summary, facts.xxh3_128


def plan_window(
    task: PlanTask, stage: PlanStage, engine: LocalEngine, monitor: Monitor
) -> tuple[FileFacts, WindowSummary]:
    """Scan a window, leave out and cut samples, and place what remains.

    engine: scans blocks of rows side by side, and lends the strategy as many threads; the plan does not depend on it.
    monitor: called with tokens. Raises `DataError` for invalid tokens, `StrategyError` when the strategy breaks its
    contract, `OSError` for storage faults.
    """
    options, strategy, rows = stage.options, configure(stage.options), stage.rows[task.split]
    limit = options.max_length if options.overlong == "truncate" else MOST_TOKENS
    facts = scan_window(rows, task.window, limit, engine, monitor)
    own = account(
        facts,
        max_length=MOST_TOKENS if strategy.cuts_stream else options.max_length,
        overlong=options.overlong,
        keep_untrainable=options.keep_untrainable,
    )
    draws = strategy.draws(options.seed, task.window.index, strategy.strategy.name)
    segments = _segments(own, strategy, options.max_length, draws)
    counts = _account_for_cuts(own.counts, segments, facts, rows, task.window)
    vectors = stage.vectors.of_window(task.split, task.window) if stage.vectors else None
    preparation = stage.vectors.preparation if stage.vectors else {}
    strategy_plan = _place(segments, strategy, draws, vectors, preparation, engine.num_workers)
    plan = _window_plan(segments, strategy_plan, facts, strategy, options, task.window)
    return plan.save(task.path), _summary(plan, counts, own.overlong, strategy_plan)


def _segments(own: Account, strategy: ConfiguredStrategy, max_length: int, draws: Draws) -> Segments:
    """The samples that remain, whole or cut."""
    stream_order = strategy.strategy.stream_order
    if stream_order is None:
        return whole_segments(own.remains, own.length, max_length)
    order = stream_order(int(own.remains.sum()), draws, strategy.options)
    return stream_segments(order, own.remains, own.length, strategy.capacity)


def _account_for_cuts(counts: Counts, segments: Segments, facts: RowFacts, rows: SplitRows, window: Window) -> Counts:
    """Count the targets that are masked because a later segment of a cut sample begins with them."""
    later = np.flatnonzero(segments.start)
    if not len(later):
        return counts
    row = segments.row[later]
    masked = row[are_targets(rows.read_window(window), row, segments.start[later], facts.skip[row])]
    return counts.with_cut(Loss(targets=len(masked), samples_affected=len(np.unique(masked))))


def _place(
    segments: Segments,
    strategy: ConfiguredStrategy,
    draws: Draws,
    vectors: Int16Array | None,
    preparation: Preparation,
    num_threads: int,
) -> Plan:
    """The strategy's answer, checked. vectors: of all rows of the window."""
    request = Request(
        lengths=segments.length,
        capacity=strategy.capacity,
        max_segments=strategy.max_segments,
        draws=draws,
        options=strategy.options,
        embeddings=None if vectors is None else vectors[segments.row],
        preparation=preparation,
        num_threads=num_threads,
    )
    name = strategy.strategy.name
    try:
        return check(strategy.strategy.place(request), request, name)
    except ContractError as error:
        raise StrategyError(str(error)) from None
    except Exception as error:
        if strategy.strategy in BUILT_IN:
            raise
        raise StrategyError(
            f"strategy {name!r}, a plug-in, failed: {type(error).__name__}: {first_line(error)}"
        ) from error


def _window_plan(
    segments: Segments,
    strategy_plan: Plan,
    facts: RowFacts,
    strategy: ConfiguredStrategy,
    options: PackOptions,
    window: Window,
) -> WindowPlan:
    """Put packs into their order, and cut them into shards."""
    segment, pack_offsets = strategy_plan.segment, strategy_plan.pack_offsets
    if options.pack_order == "shuffle":
        order = strategy.draws(options.seed, window.index, "pack-order").permutation(strategy_plan.num_packs)
        segment, pack_offsets = _reorder(segment, pack_offsets, order)
    row, length = segments.row[segment], segments.length[segment]
    tokens = np.diff(_token_offsets(length, pack_offsets))
    return WindowPlan(
        row=row,
        start=segments.start[segment],
        length=length,
        skip=facts.skip[row],
        pack_offsets=pack_offsets,
        shard_offsets=_cut_shards(tokens, np.diff(pack_offsets), options.shard_size),
    )


def _summary(plan: WindowPlan, counts: Counts, overlong: OverlongSamples, strategy_plan: Plan) -> WindowSummary:
    per_pack = np.diff(plan.pack_offsets)
    token_offsets = _token_offsets(plan.length, plan.pack_offsets)
    return WindowSummary(
        counts=counts,
        overlong=overlong,
        packs=strategy_plan.num_packs,
        segments=len(plan.row),
        most_segments=int(per_pack.max()) if len(per_pack) else 0,
        sum_length_squared=int(np.dot(plan.length.astype(np.int64), plan.length)),
        shards=[
            ShardSize(packs=int(last - first), tokens=int(token_offsets[last] - token_offsets[first]))
            for first, last in pairwise(plan.shard_offsets)
        ],
        report=dict(strategy_plan.report),
    )


def _token_offsets(length: Int32Array, pack_offsets: Int64Array) -> Int64Array:
    """First token of each pack, and the end.  # shape: (num_packs + 1,)"""
    ends = np.cumsum(length, dtype=np.int64)
    offsets: Int64Array = np.concatenate([np.zeros(1, np.int64), ends])[pack_offsets]
    return offsets


def _reorder(segment: Int64Array, pack_offsets: Int64Array, order: Int64Array) -> tuple[Int64Array, Int64Array]:
    """The same packs in another order."""
    sizes = np.diff(pack_offsets)[order]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    take = np.arange(len(segment)) + np.repeat(pack_offsets[order] - offsets[:-1], sizes)
    return segment[take], offsets


def pack_bytes(tokens: Int64Array, segments: Int64Array) -> Int64Array:
    """Bytes of each pack in a shard, before compression.

    Three int32 a token; five lists of the segments' sizes (int32, one of them int64) and one boundary
    more than segments; a 32-bit offset in each of eight lists.
    """
    return 12 * tokens + 24 * segments + 4 + 8 * 4


def _cut_shards(tokens: Int64Array, segments: Int64Array, shard_size: int) -> Int64Array:
    """First pack of each shard, and the end: as many packs as fit `shard_size`, at least one."""
    ends = np.cumsum(pack_bytes(tokens, segments))
    offsets = [0]
    while offsets[-1] < len(ends):
        before = int(ends[offsets[-1] - 1]) if offsets[-1] else 0
        fits = int(np.searchsorted(ends, before + shard_size, side="right"))
        offsets.append(max(fits, offsets[-1] + 1))
    return np.array(offsets, np.int64)
