"""Planning one window: integers in, integers out."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.errors import StrategyError
from pipeline.base.storage import FileFacts, write_file
from pipeline.packing.config import Chosen, PackConfig
from pipeline.packing.gather import are_targets
from pipeline.packing.segments import Counts, Loss, Segments, TooLong, account, stream_segments, whole_segments
from pipeline.reading.rows import Int64Array
from pipeline.reading.scan import MOST_TOKENS, Facts, Int32Array, scan
from pipeline.reading.windows import SplitRows, Window
from strategies import ContractError, Request
from strategies.contract import Int16Array, Prepared, check

_BLOCK_TOKENS = 1 << 24  # tokens scanned by one task


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """Which segments stand in which pack of a window, pack after pack."""

    row: Int64Array
    """Of each segment's sample, counted within the window.  # shape: (num_segments,)"""

    start: Int32Array
    """Of each segment in its sample, after removing padding.  # shape: (num_segments,)"""

    length: Int32Array
    """# shape: (num_segments,)"""

    skip: Int32Array
    """Padding before each sample's first token; -1 where padding is scattered.  # shape: (num_segments,)"""

    pack_offsets: Int64Array
    """First segment of each pack, and the end.  # shape: (num_packs + 1,)"""

    shard_offsets: Int64Array
    """First pack of each shard, and the end.  # shape: (num_shards + 1,)"""

    def save(self, path: Path) -> FileFacts:
        """Write it durably."""
        content = io.BytesIO()
        np.savez(content, **vars(self))
        return write_file(path, content.getvalue())

    @staticmethod
    def load(path: Path) -> WindowPlan:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            return WindowPlan(**arrays)


@dataclass(frozen=True, kw_only=True)
class WindowSummary:
    """What is told of a planned window."""

    counts: Counts
    too_long: TooLong
    num_packs: int
    num_segments: int
    most_segments: int
    sum_length_squared: int
    shards: tuple[tuple[int, int], ...]
    """(packs, tokens) of each shard."""

    report: dict[str, int | float]

    def to_json(self) -> dict[str, Any]:
        """As it stands in the record of the plan task."""
        return {**vars(self), "counts": self.counts.to_json(), "too_long": vars(self.too_long)}

    @staticmethod
    def from_json(value: dict[str, Any]) -> WindowSummary:
        """Read what `to_json` gave."""
        return WindowSummary(
            **{
                **value,
                "counts": Counts.from_json(value["counts"]),
                "too_long": TooLong(**value["too_long"]),
                "shards": tuple((packs, tokens) for packs, tokens in value["shards"]),
            }
        )


def scan_blocks(window: Window) -> list[tuple[int, int]]:
    """Row ranges of the window, of about equal size, each a task."""
    num_blocks = max(1, min(window.num_rows, -(-window.num_tokens // _BLOCK_TOKENS)))
    edges = [window.first_row + window.num_rows * i // num_blocks for i in range(num_blocks + 1)]
    return list(pairwise(edges))


def scan_block(split: SplitRows, start: int, stop: int, config: PackConfig) -> Facts:
    """Check and count the tokens of rows start..stop-1."""
    rows = split.read(start, stop)
    limit = config.max_length if config.overlong == "truncate" else MOST_TOKENS
    return scan(rows, limit, lambda row: split.locate(start + row), lambda row: split.column_names(start + row))


def place_window(
    facts: Facts,
    split: SplitRows,
    window: Window,
    config: PackConfig,
    chosen: Chosen,
    *,
    vectors: Int16Array | None,
    prepared: Prepared,
    num_threads: int,
) -> tuple[WindowPlan, WindowSummary]:
    """Leave out, cut and place the samples of a window.

    vectors: of its rows, for strategies that embed.  # shape: (num_rows, num_dimensions)
    prepared: by the strategy, for the whole run.

    The tokens themselves are read only where a sample is cut. Raises `StrategyError` when the strategy
    breaks its contract.
    """
    strategy = chosen.strategy
    is_stream = strategy.stream_order is not None
    remains, length, counts, too_long = account(
        facts,
        max_length=config.max_length if not is_stream else MOST_TOKENS,
        overlong=config.overlong,
        keep_untrainable=config.keep_untrainable,
    )
    draws = chosen.draws(config, window.index, strategy.name)
    if strategy.stream_order is not None:
        order = strategy.stream_order(int(remains.sum()), draws, chosen.options)
        segments = stream_segments(order, remains, length, chosen.capacity)
    else:
        segments = whole_segments(remains, length, config.max_length)
    counts = _account_for_cuts(counts, segments, facts, split, window)
    request = Request(
        lengths=segments.length,
        capacity=chosen.capacity,
        draws=draws,
        options=chosen.options,
        embeddings=None if vectors is None else vectors[segments.row],
        prepared=prepared,
        num_threads=num_threads,
    )
    try:
        plan = check(strategy.place(request), request, strategy.name)
    except ContractError as error:
        raise StrategyError(str(error)) from None

    segment, pack_offsets = plan.segment, plan.pack_offsets
    if config.pack_order == "shuffle":
        order = chosen.draws(config, window.index, "pack-order").permutation(plan.num_packs)
        segment, pack_offsets = _reorder(segment, pack_offsets, order)
    lengths = segments.length[segment]
    token_offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[pack_offsets]
    per_pack = np.diff(pack_offsets)
    shard_offsets = _cut_shards(np.diff(token_offsets), per_pack, config.shard_size)
    row = segments.row[segment]
    summary = WindowSummary(
        counts=counts,
        too_long=too_long,
        num_packs=plan.num_packs,
        num_segments=len(segment),
        most_segments=int(per_pack.max()) if len(per_pack) else 0,
        sum_length_squared=int(np.dot(lengths.astype(np.int64), lengths)),
        shards=tuple(
            (int(last - first), int(token_offsets[last] - token_offsets[first]))
            for first, last in pairwise(shard_offsets)
        ),
        report=dict(plan.report),
    )
    return (
        WindowPlan(
            row=row,
            start=segments.start[segment],
            length=lengths,
            skip=facts.skip[row],
            pack_offsets=pack_offsets,
            shard_offsets=shard_offsets,
        ),
        summary,
    )


def _account_for_cuts(counts: Counts, segments: Segments, facts: Facts, split: SplitRows, window: Window) -> Counts:
    """Count the targets that are masked because a later segment of a cut sample begins with them."""
    later = np.flatnonzero(segments.start)
    if not len(later):
        return counts
    rows = split.read(window.first_row, window.first_row + window.num_rows)
    row = segments.row[later]
    masked = row[are_targets(rows, row, segments.start[later], facts.skip[row])]
    loss = Loss(targets=len(masked), samples_affected=len(np.unique(masked)))
    return replace(counts, targets_packed=counts.targets_packed - len(masked), dropped={**counts.dropped, "cut": loss})


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
