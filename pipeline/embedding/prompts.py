"""The tokens that a sample is embedded by: its prompt."""

from __future__ import annotations

import numpy as np

from pipeline.format.labels import IGNORE
from pipeline.reading.rows import NO_TARGET_COLUMN, Addresses, Rows, read_labels, read_values
from strategies.arrays import Float32Array, Int32Array, Int64Array
from strategies.compiled import kernel

FALLBACK = 256
"""First tokens that stand for a sample without prompt, or without anything that says what the prompt is."""


def prompts(rows: Rows, which: Int64Array) -> tuple[Int32Array, Int64Array]:
    """The tokens that are not targets, of some rows, end to end; padding left out.

    which: # shape: (num_prompts,)
    Returns (tokens, offsets): offsets has shape (num_prompts + 1,). A sample without any token has an empty prompt.
    """
    capacity = int(rows.addresses.length[which].sum())
    tokens, offsets = np.empty(capacity, np.int32), np.zeros(len(which) + 1, np.int64)
    _read(rows.addresses, which, tokens, offsets)
    return tokens[: offsets[-1]], offsets


@kernel
def _read(rows: Addresses, which: Int64Array, out: Int32Array, offsets: Int64Array) -> None:
    at = np.int64(0)
    for n in range(which.shape[0]):
        r = which[n]
        count = rows.length[r]
        token = np.empty(count, np.int32)
        read_values(rows.token[r], rows.token_width[r], 0, token)
        kept = np.ones(count, np.bool_)
        if rows.mask[r] != 0:
            mask = np.empty(count, np.int32)
            read_values(rows.mask[r], rows.mask_width[r], 0, mask)
            for i in range(count):
                kept[i] = mask[i] != 0
        start = at
        if rows.target_form[r] != NO_TARGET_COLUMN:
            label = np.empty(count, np.int32)
            read_labels(rows.target_form[r], rows.target[r], rows.target_width[r], 0, token, label)
            for i in range(count):
                if kept[i] and label[i] == IGNORE:
                    out[at] = token[i]
                    at += 1
        if at == start:
            for i in range(count):
                if kept[i] and at - start < FALLBACK:
                    out[at] = token[i]
                    at += 1
        offsets[n + 1] = at


def sum_of_rows(tokens: Int32Array, offsets: Int64Array, token_ids: Int32Array, table: Float32Array) -> Float32Array:
    """For each prompt the sum of its tokens' rows in a table; unknown tokens add nothing.

    token_ids: ids, ascending, of the table's rows.  # shape: (num_token_ids,)
    Returns an array of shape (num_prompts, table.shape[1]).
    """
    sums = np.zeros((len(offsets) - 1, table.shape[1]), np.float32)
    row_of = np.full(int(token_ids[-1]) + 2 if len(token_ids) else 1, -1, np.int32)
    row_of[token_ids] = np.arange(len(token_ids), dtype=np.int32)
    _sum(tokens, offsets, row_of, table, sums)
    return sums


@kernel
def _sum(tokens: Int32Array, offsets: Int64Array, row_of: Int32Array, table: Float32Array, sums: Float32Array) -> None:
    for n in range(offsets.shape[0] - 1):
        for i in range(offsets[n], offsets[n + 1]):
            token = tokens[i]
            if 0 <= token < row_of.shape[0] and row_of[token] >= 0:
                row = table[row_of[token]]
                for k in range(row.shape[0]):
                    sums[n, k] += row[k]
