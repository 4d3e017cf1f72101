"""Gathering tokens into packs: one pass that also fills labels, positions and target counts."""

from __future__ import annotations

import numpy as np

from pipeline.format.labels import IGNORE
from pipeline.reading.rows import Addresses, Rows, read_labels, read_values
from strategies.arrays import BoolArray, Int32Array, Int64Array
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
    target_counts: filled with the targets of each segment.  # shape: (num_segments,)
    """
    _gather(rows.addresses, row, start, length, skip, input_ids, labels, position_ids, target_counts)


def are_targets(rows: Rows, row: Int64Array, start: Int32Array, skip: Int32Array) -> BoolArray:
    """Whether the source says that the first token of each of the given segments is a target.

    row, start, skip: of segments that are not the first of their sample.  # shape: (num_segments,)
    """
    num = len(row)
    # Gathering masks the first label of a segment, so each token is read together with the one before it.
    two = np.full(num, 2, np.int32)
    input_ids, labels, position_ids = (np.empty(2 * num, np.int32) for _ in range(3))
    target_counts = np.empty(num, np.int32)
    gather(rows, row, start - np.int32(1), two, skip, input_ids, labels, position_ids, target_counts)
    is_target: BoolArray = target_counts == 1
    return is_target


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
        ids, targets = input_ids[at:end], labels[at:end]
        if skip[s] >= 0:
            offset = np.int64(skip[s]) + start[s]
            read_values(rows.token[r], rows.token_width[r], offset, ids)
            read_labels(rows.target_form[r], rows.target[r], rows.target_width[r], offset, ids, targets)
        else:
            _gather_scattered(rows, r, start[s], ids, targets)
        targets[0] = IGNORE
        num_targets = 0
        for i in range(end - at):
            position_ids[at + i] = i
            num_targets += targets[i] != IGNORE
        target_counts[s] = num_targets
        at = end


@kernel
def _gather_scattered(rows: Addresses, row: int, start: int, ids: Int32Array, targets: Int32Array) -> None:
    """Fill `ids` and `targets` from a row whose padding is scattered, from its `start`-th kept token on."""
    count = rows.length[row]
    mask, token, label = np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.int32)
    read_values(rows.mask[row], rows.mask_width[row], 0, mask)
    read_values(rows.token[row], rows.token_width[row], 0, token)
    read_labels(rows.target_form[row], rows.target[row], rows.target_width[row], 0, token, label)
    kept = -start
    for i in range(count):
        if mask[i] != 0:
            if 0 <= kept < ids.shape[0]:
                ids[kept] = token[i]
                targets[kept] = label[i]
            kept += 1
