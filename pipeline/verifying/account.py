"""The verifier's own account of a source: what of each row has to be packed, and what is left out for which reason.

It is written apart from the scan and the account of packing, row by row in the order of the format's reasons, and it
decides for itself what a target is, so that one mistake cannot stand on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipeline.base.engine import LocalEngine
from pipeline.format.counts import REASONS, Counts, Loss, Losses
from pipeline.reading.rows import LABELS, NO_TARGET_COLUMN, Addresses, read_values
from pipeline.reading.windows import SplitRows, Window
from strategies.arrays import Int64Array
from strategies.compiled import kernel

_BLOCK_ROWS = 1 << 16  # looked at by one task
_CACHED = 1024  # tokens looked at together

_DROP, _TRUNCATE, _SPLIT = 0, 1, 2
_POLICIES = {"error": _DROP, "drop": _DROP, "truncate": _TRUNCATE, "split": _SPLIT}

_PADDING, _EMPTY, _DROPPED, _TRUNCATED, _FIRST, _NO_TARGETS = range(6)
_SAMPLES, _TOKENS, _TARGETS, _AFFECTED = range(4)
_IN, _PACKED = len(REASONS), len(REASONS) + 1


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What decides whether a sample is packed."""

    max_length: int
    overlong: str
    """error, drop, truncate or split."""

    cuts_stream: bool
    """Whether samples are cut as one stream, so that none is too long."""

    keep_untrainable: bool


@dataclass(frozen=True, kw_only=True)
class SourceAccount:
    """What has to become of a window."""

    counts: Counts
    """Everything but the reason `cut`, which depends on the plan."""

    tokens: Int64Array
    """Tokens of each row that have to be packed.  # shape: (num_rows,)"""


def account_of(rows: SplitRows, window: Window, rules: Rules, engine: LocalEngine) -> SourceAccount:
    """The account of a window's rows. Raises `DataError` for rows that cannot be read."""
    num_blocks = max(1, -(-window.num_rows // _BLOCK_ROWS))
    edges = [window.first_row + window.num_rows * i // num_blocks for i in range(num_blocks + 1)]

    def account(block: tuple[int, int]) -> tuple[Int64Array, Int64Array]:
        read = rows.read(*block)
        sums, tokens = np.zeros((len(REASONS) + 2, 4), np.int64), np.zeros(len(read), np.int64)
        policy = _SPLIT if rules.cuts_stream else _POLICIES[rules.overlong]
        _account(read.addresses, rules.max_length, policy, rules.keep_untrainable, sums, tokens)
        return sums, tokens

    parts = list(engine.map(account, pairwise(edges)))
    sums = np.sum([part for part, _ in parts], axis=0)
    losses = {
        reason: Loss(samples=samples, tokens=tokens, targets=targets, samples_affected=affected)
        for reason, (samples, tokens, targets, affected) in zip(REASONS, sums.tolist(), strict=False)
    }
    totals = {
        f"{what}_{way}": int(sums[row, column])
        for way, row in (("in", _IN), ("packed", _PACKED))
        for what, column in (("samples", _SAMPLES), ("tokens", _TOKENS), ("targets", _TARGETS))
    }
    counts = Counts(**totals, dropped=Losses(**losses))
    return SourceAccount(counts=counts, tokens=np.concatenate([tokens for _, tokens in parts]))


@kernel
def _account(
    rows: Addresses, max_length: int, policy: int, keep_untrainable: bool, sums: Int64Array, tokens: Int64Array
) -> None:
    """Add rows to `sums` (a row a reason, then what came in and what is packed), and fill `tokens`."""
    for row in range(rows.length.shape[0]):
        padding, targets_in_padding, kept, head, tail, first = _count(rows, row, max_length)
        _add(sums, _IN, 1, padding + kept, targets_in_padding + head + tail, 0)
        if padding:
            _add(sums, _PADDING, 0, padding, targets_in_padding, 1)
        if kept == 0:
            _add(sums, _EMPTY, 1, 0, 0, 1)
            continue
        length, targets = kept, head + tail
        if kept > max_length and policy == _DROP:
            _add(sums, _DROPPED, 1, kept, targets, 1)
            continue
        if kept > max_length and policy == _TRUNCATE:
            _add(sums, _TRUNCATED, 0, kept - max_length, tail, 1)
            length, targets = max_length, head
        if first:
            _add(sums, _FIRST, 0, 0, 1, 1)
            targets -= 1
        if targets == 0 and not keep_untrainable:
            _add(sums, _NO_TARGETS, 1, length, 0, 1)
            continue
        _add(sums, _PACKED, 1, length, targets, 0)
        tokens[row] = length


@kernel
def _add(sums: Int64Array, row: int, samples: int, tokens: int, targets: int, affected: int) -> None:
    sums[row, _SAMPLES] += samples
    sums[row, _TOKENS] += tokens
    sums[row, _TARGETS] += targets
    sums[row, _AFFECTED] += affected


@kernel
def _count(rows: Addresses, row: int, max_length: int) -> tuple[int, int, int, int, int, int]:
    """Tokens and targets in padding; tokens kept; targets among the first `max_length` of these, and beyond.

    Also, as 1 or 0, whether the first of these is a target.
    """
    value = np.zeros(_CACHED, np.int64)
    mask = np.ones(_CACHED, np.int64)
    padding = targets_in_padding = kept = head = tail = first = 0
    for begin in range(0, rows.length[row], _CACHED):
        count = min(_CACHED, rows.length[row] - begin)
        if rows.target_form[row] != NO_TARGET_COLUMN:
            read_values(rows.target[row], rows.target_width[row], begin, value[:count])
        if rows.mask[row] != 0:
            read_values(rows.mask[row], rows.mask_width[row], begin, mask[:count])
        for i in range(count):
            target = is_target(rows.target_form[row], value[i])
            if mask[i] == 0:
                padding += 1
                targets_in_padding += target
                continue
            if kept == 0:
                first = int(target)
            if kept < max_length:
                head += target
            else:
                tail += target
            kept += 1
    return padding, targets_in_padding, kept, head, tail, first


@kernel
def is_target(form: int, value: int) -> bool:
    """Whether a token is a target, by how its row's targets are given and by the value there."""
    if form == LABELS:
        return value != -100
    return form == NO_TARGET_COLUMN or value != 0
