"""From samples to segments: what is left out, what is cut, and the account of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.reading.rows import Int64Array
from pipeline.reading.scan import Facts, Int32Array

BoolArray = npt.NDArray[np.bool_]

REASONS = (
    "padding_removed",
    "empty",
    "overlong_dropped",
    "overlong_truncated",
    "first_token",
    "no_targets",
    "cut",
)
"""Why a sample, token or target is left out, in the order in which they apply."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What one reason removed."""

    samples: int = 0
    tokens: int = 0
    targets: int = 0
    samples_affected: int = 0
    """Samples it touched, lost or not."""

    def __add__(self, other: Loss) -> Loss:
        return Loss(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The account of samples, tokens and targets: what came in, what was packed, what was left out."""

    samples_in: int = 0
    tokens_in: int = 0
    targets_in: int = 0
    samples_packed: int = 0
    tokens_packed: int = 0
    targets_packed: int = 0
    dropped: Mapping[str, Loss] = field(default_factory=lambda: {reason: Loss() for reason in REASONS})

    def __add__(self, other: Counts) -> Counts:
        sums = {name: value + getattr(other, name) for name, value in vars(self).items() if name != "dropped"}
        return Counts(**sums, dropped={reason: self.dropped[reason] + other.dropped[reason] for reason in REASONS})

    def balances(self) -> bool:
        """Whether everything that came in was packed or is counted under a reason."""
        return all(
            getattr(self, f"{what}_in")
            == getattr(self, f"{what}_packed") + sum(getattr(loss, what) for loss in self.dropped.values())
            for what in ("samples", "tokens", "targets")
        )

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {**vars(self), "dropped": {reason: vars(loss) for reason, loss in self.dropped.items()}}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Counts:
        """Read what `to_json` gave."""
        dropped = {reason: Loss(**loss) for reason, loss in value["dropped"].items()}
        return Counts(**{**value, "dropped": dropped})


@dataclass(frozen=True, kw_only=True)
class Segments:
    """Contiguous runs of samples' kept tokens, in arrival order. All have shape (num_segments,)."""

    row: Int64Array
    """Row of the sample, counted within the window."""

    start: Int32Array
    """Offset inside the sample, after removing padding."""

    length: Int32Array

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True, kw_only=True)
class TooLong:
    """Samples longer than max_length, whatever became of them."""

    samples: int = 0
    longest: int = 0
    longest_row: int = -1


def account(
    facts: Facts, *, max_length: int, overlong: str, keep_untrainable: bool
) -> tuple[BoolArray, Int32Array, Counts, TooLong]:
    """Which samples remain, how long each is, and what was left out so far (all but the reason `cut`).

    overlong: drop, truncate, or split (which removes nothing here); "error" counts as drop.
    Returns (remains, length, counts, too_long); the arrays have shape (num_rows,).
    """
    length = facts.kept.copy()
    targets = facts.targets_in_head + facts.targets_in_tail
    dropped = {reason: Loss() for reason in REASONS}

    def leave_out(reason: str, which: BoolArray) -> None:
        num = int(which.sum())
        dropped[reason] = Loss(
            samples=num,
            tokens=_sum(length[which]),
            targets=_sum(targets[which]),
            samples_affected=num,
        )
        remains[which] = False

    dropped["padding_removed"] = Loss(
        tokens=_sum(facts.padding),
        targets=_sum(facts.targets_in_padding),
        samples_affected=int(np.count_nonzero(facts.padding)),
    )
    remains = np.ones(len(facts), np.bool_)
    leave_out("empty", length == 0)

    long = length > max_length
    too_long = TooLong()
    if long.any():
        row = int(length.argmax())
        too_long = TooLong(samples=int(long.sum()), longest=int(length[row]), longest_row=row)
        if overlong in ("drop", "error"):
            leave_out("overlong_dropped", long)
        elif overlong == "truncate":
            dropped["overlong_truncated"] = Loss(
                tokens=_sum(length[long]) - too_long.samples * max_length,
                targets=_sum(facts.targets_in_tail),
                samples_affected=too_long.samples,
            )
            length[long] = max_length
            targets = facts.targets_in_head.copy()

    first = (facts.first_is_target == 1) & remains
    targets = targets - first
    dropped["first_token"] = Loss(targets=int(first.sum()), samples_affected=int(first.sum()))
    if not keep_untrainable:
        leave_out("no_targets", remains & (targets == 0))

    counts = Counts(
        samples_in=len(facts),
        tokens_in=_sum(facts.kept) + _sum(facts.padding),
        targets_in=_sum(facts.targets_in_head) + _sum(facts.targets_in_tail) + _sum(facts.targets_in_padding),
        samples_packed=int(remains.sum()),
        tokens_packed=_sum(length[remains]),
        targets_packed=_sum(targets[remains]),
        dropped=dropped,
    )
    return remains, length, counts, too_long


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
