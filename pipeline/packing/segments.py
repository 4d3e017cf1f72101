"""From samples to segments: what is left out, what is cut, and the account of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.format.counts import REASONS, Counts, Loss, Losses
from pipeline.reading.scan import RowFacts
from strategies.arrays import BoolArray, Int32Array, Int64Array


@dataclass(frozen=True, kw_only=True)
class Segments:
    """Contiguous runs of samples' kept tokens, in arrival order. All have shape (num_segments,)."""

    row: Int64Array
    """The sample's row, counted within the window."""

    start: Int32Array
    """Where in its sample the segment begins, after removing padding."""

    length: Int32Array
    """Tokens of the segment."""

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True, kw_only=True)
class OverlongSamples:
    """Samples longer than `max_length`, whatever became of them."""

    samples: int = 0
    longest: int = 0
    """Tokens of the longest one."""

    longest_row: int = -1
    """Its row, counted within the window."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """What remains of a window's samples. The arrays have shape (num_rows,)."""

    remains: BoolArray
    """Whether a sample is packed."""

    length: Int32Array
    """Tokens of a sample that are packed, if it is."""

    counts: Counts
    """What was left out so far: all but the reason `cut`."""

    overlong: OverlongSamples


def account(facts: RowFacts, *, max_length: int, overlong: str, keep_untrainable: bool) -> Account:
    """Leave out what is not packed, reason by reason.

    overlong: drop, truncate, or split (which removes nothing here); "error" counts as drop.
    """
    length = facts.kept.copy()
    targets = facts.targets_in_head + facts.targets_in_tail
    losses = dict.fromkeys(REASONS, Loss())

    def leave_out(reason: str, which: BoolArray) -> None:
        num = int(which.sum())
        losses[reason] = Loss(
            samples=num,
            tokens=_sum(length[which]),
            targets=_sum(targets[which]),
            samples_affected=num,
        )
        remains[which] = False

    losses["padding_removed"] = Loss(
        tokens=_sum(facts.padding),
        targets=_sum(facts.targets_in_padding),
        samples_affected=int(np.count_nonzero(facts.padding)),
    )
    remains = np.ones(len(facts), np.bool_)
    leave_out("empty", length == 0)

    long = length > max_length
    too_long = OverlongSamples()
    if long.any():
        row = int(length.argmax())
        too_long = OverlongSamples(samples=int(long.sum()), longest=int(length[row]), longest_row=row)
        if overlong in ("drop", "error"):
            leave_out("overlong_dropped", long)
        elif overlong == "truncate":
            losses["overlong_truncated"] = Loss(
                tokens=_sum(length[long]) - too_long.samples * max_length,
                targets=_sum(facts.targets_in_tail),
                samples_affected=too_long.samples,
            )
            length[long] = max_length
            targets = facts.targets_in_head.copy()

    first = (facts.first_is_target == 1) & remains
    targets = targets - first
    losses["first_token"] = Loss(targets=int(first.sum()), samples_affected=int(first.sum()))
    if not keep_untrainable:
        leave_out("no_targets", remains & (targets == 0))

    counts = Counts(
        samples_in=len(facts),
        tokens_in=_sum(facts.kept) + _sum(facts.padding),
        targets_in=_sum(facts.targets_in_head) + _sum(facts.targets_in_tail) + _sum(facts.targets_in_padding),
        samples_packed=int(remains.sum()),
        tokens_packed=_sum(length[remains]),
        targets_packed=_sum(targets[remains]),
        dropped=Losses(**losses),
    )
    return Account(remains=remains, length=length, counts=counts, overlong=too_long)


def whole_segments(remains: BoolArray, length: Int32Array, max_length: int) -> Segments:
    """Each remaining sample as one segment, or every `max_length` tokens of it as one."""
    rows = np.flatnonzero(remains)
    lengths = length[rows].astype(np.int64)
    pieces = -(-lengths // max_length)
    row = np.repeat(rows, pieces)
    piece = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = piece * max_length
    return Segments(
        row=row,
        start=start.astype(np.int32),
        length=np.minimum(np.repeat(lengths, pieces) - start, max_length).astype(np.int32),
    )


def stream_segments(order: Int64Array, remains: BoolArray, length: Int32Array, capacity: int) -> Segments:
    """The remaining samples concatenated in the given order and cut every `capacity` tokens.

    order: permutation of the remaining samples, counted among themselves.
    """
    rows = np.flatnonzero(remains)[order]
    lengths = length[rows].astype(np.int64)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    edges = np.union1d(ends, np.arange(capacity, total, capacity))
    begins = np.concatenate([[0], edges[:-1]]) if total else np.zeros(0, np.int64)
    at = np.searchsorted(ends, begins, side="right")
    return Segments(
        row=rows[at],
        start=(begins - (ends[at] - lengths[at])).astype(np.int32),
        length=(edges - begins).astype(np.int32),
    )


def _sum(values: npt.NDArray[Any]) -> int:
    return int(values.sum(dtype=np.int64))
