"""Gathering tokens into packs: one pass that also fills labels, positions and target counts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.reading.rows import IGNORE, LABELS, NO_TARGET_COLUMN, Addresses, Int64Array, Rows, read_values
from pipeline.reading.scan import Int32Array
from strategies.compiled import kernel


def gather(
    rows: Rows,
    row: Int64Array,
    start: Int32Array,
    length: Int32Array,
    skip: Int32Array,
    input_ids: Int32Array,
    labels: Int32Array,
    position_ids: Int32Array,
    target_counts: Int32Array,
) -> None:
    """Lay segments end to end.

    row, start, length, skip: of each segment, as in `WindowPlan`.  # shape: (num_segments,)
    input_ids, labels, position_ids: filled.  # shape: (num_tokens,)
    target_counts: filled, targets of each segment.  # shape: (num_segments,)
    """
    _gather(rows.addresses, row, start, length, skip, input_ids, labels, position_ids, target_counts)


def are_targets(rows: Rows, row: Int64Array, start: Int32Array, skip: Int32Array) -> npt.NDArray[np.bool_]:
    """Whether the source says that each of the given tokens is a target.

    row, start, skip: of segments that are not the first of their sample.  # shape: (num_segments,)
    """
    num = len(row)
    # Gathering masks the first label of a segment, so each token is read together with the one before it.
    two = np.full(num, 2, np.int32)
    input_ids, labels, position_ids = (np.empty(2 * num, np.int32) for _ in range(3))
    target_counts = np.empty(num, np.int32)
    gather(rows, row, start - np.int32(1), two, skip, input_ids, labels, position_ids, target_counts)
    found: npt.NDArray[np.bool_] = target_counts == 1
    return found


@kernel
def _gather(
    rows: Addresses,
    row: Int64Array,
    start: Int32Array,
    length: Int32Array,
    skip: Int32Array,
    input_ids: Int32Array,
    labels: Int32Array,
    position_ids: Int32Array,
    target_counts: Int32Array,
) -> None:
    at = np.int64(0)
    for s in range(row.shape[0]):
        r = row[s]
        end = at + length[s]
        form = rows.target_form[r]
        ids, targets = input_ids[at:end], labels[at:end]
        if skip[s] >= 0:
            offset = np.int64(skip[s]) + start[s]
            read_values(rows.token[r], rows.token_width[r], offset, ids)
            if form != NO_TARGET_COLUMN:
                read_values(rows.target[r], rows.target_width[r], offset, targets)
        else:
            mask = np.empty(rows.length[r], np.int32)
            read_values(rows.mask[r], rows.mask_width[r], 0, mask)
            _read_scattered(rows.token[r], rows.token_width[r], mask, start[s], ids)
            if form != NO_TARGET_COLUMN:
                _read_scattered(rows.target[r], rows.target_width[r], mask, start[s], targets)
        if form == NO_TARGET_COLUMN:
            for i in range(end - at):
                targets[i] = ids[i]
        elif form != LABELS:
            for i in range(end - at):
                targets[i] = ids[i] if targets[i] != 0 else IGNORE
        targets[0] = IGNORE
        num_targets = 0
        for i in range(end - at):
            position_ids[at + i] = i
            num_targets += targets[i] != IGNORE
        target_counts[s] = num_targets
        at = end


@kernel
def _read_scattered(address: int, width: int, mask: Int32Array, start: int, out: Int32Array) -> None:
    """Fill `out` with the values whose mask is not zero, from the `start`-th of them on."""
    values = np.empty(mask.shape[0], np.int32)
    read_values(address, width, 0, values)
    kept = -start
    for i in range(mask.shape[0]):
        if mask[i] != 0:
            if 0 <= kept < out.shape[0]:
                out[kept] = values[i]
            kept += 1
