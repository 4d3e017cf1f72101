"""One pass over the tokens of a run of rows: are they valid, and what has to be counted of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np

from pipeline.base.engine import LocalEngine, Monitor
from pipeline.base.errors import DataError
from pipeline.format.labels import IGNORE
from pipeline.reading.rows import NO_TARGET_COLUMN, Addresses, read_labels, read_values
from pipeline.reading.windows import SplitRows, Window
from strategies.arrays import Int32Array
from strategies.compiled import kernel, ready

MOST_TOKENS = 2**31 - 1
"""Tokens that one sample may have: offsets inside a sample are int32."""

_BLOCK_TOKENS = 1 << 24  # scanned by one task
_CACHED = 4096  # tokens looked at together, so that copies stay in the first-level cache


@dataclass(frozen=True, kw_only=True)
class RowFacts:
    """What packing has to know of each row; "kept" tokens are those outside padding.

    All have shape (num_rows,).
    """

    kept: Int32Array
    """Kept tokens."""

    skip: Int32Array
    """Tokens before the first kept one; -1 where the kept ones are not contiguous."""

    padding: Int32Array
    """Tokens under a zero attention mask."""

    targets_in_padding: Int32Array
    targets_in_head: Int32Array
    """Targets among the first `limit` kept tokens."""

    targets_in_tail: Int32Array
    """Targets among the kept tokens beyond."""

    first_is_target: Int32Array
    """1 where the first kept token is a target."""

    def __len__(self) -> int:
        return len(self.kept)

    def num_tokens(self) -> int:
        """Tokens of all rows, padding included."""
        return int(self.kept.sum(dtype=np.int64)) + int(self.padding.sum(dtype=np.int64))

    @staticmethod
    def join(parts: list[RowFacts]) -> RowFacts:
        """The facts of consecutive runs of rows as those of one."""
        return RowFacts(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(RowFacts)})


def scan_window(rows: SplitRows, window: Window, limit: int, engine: LocalEngine, monitor: Monitor) -> RowFacts:
    """Check and count the tokens of a window, in blocks of about equal size, side by side.

    limit: kept tokens that count as the head of a sample. Raises as `scan`.
    """
    num_blocks = max(1, min(window.num_rows, -(-window.num_tokens // _BLOCK_TOKENS)))
    edges = [window.first_row + window.num_rows * i // num_blocks for i in range(num_blocks + 1)]

    def scan_block(block: tuple[int, int]) -> RowFacts:
        facts = scan(rows, *block, limit)
        monitor(facts.num_tokens())
        return facts

    return RowFacts.join(list(engine.map(scan_block, pairwise(edges))))


def scan(rows: SplitRows, start: int, stop: int, limit: int) -> RowFacts:
    """Check and count the tokens of rows start..stop-1.

    limit: kept tokens that count as the head of a sample.
    Raises `DataError` for a token id or label outside 0..2^31-1 (labels may also be -100).
    """
    read = rows.read(start, stop)
    length = read.addresses.length
    if len(length) and length.max() > MOST_TOKENS:
        row = int(length.argmax())
        raise DataError(
            f"{rows.locate(start + row)}: {length[row]} tokens in one sample; at most {MOST_TOKENS} are supported"
        )
    ready()
    facts = np.zeros((len(fields(RowFacts)), len(read)), np.int32)
    fault, row, position = _scan(read.addresses, limit, facts)
    if fault:
        token_column, target_column = rows.column_names(start + row)
        name = token_column if fault == _BAD_TOKEN else target_column
        wanted = "0 to 2147483647" if fault == _BAD_TOKEN else "-100 or 0 to 2147483647"
        value, where = read.value(row, name, position), rows.locate(start + row)
        raise DataError(f"{where}: column {name!r} holds {value} at position {position}; it must be {wanted}")
    return RowFacts(**{f.name: column for f, column in zip(fields(RowFacts), facts, strict=True)})


_BAD_TOKEN, _BAD_LABEL = 1, 2


@kernel
def _scan(rows: Addresses, limit: int, facts: Int32Array) -> tuple[int, int, int]:
    """Fill `facts` (one row a field of RowFacts); returns (fault, row, position), fault 0 for none."""
    token = np.empty(_CACHED, np.int64)
    label = np.zeros(_CACHED, np.int64)
    mask = np.empty(_CACHED, np.int64)
    zeros = np.zeros(_CACHED, np.int64)  # stand for the tokens of targets, so that an invalid one is no label
    for row in range(rows.length.shape[0]):
        form = rows.target_form[row]
        masked = rows.mask[row] != 0
        kept = 0
        first = -1
        last = -1
        for begin in range(0, rows.length[row], _CACHED):
            count = min(_CACHED, rows.length[row] - begin)
            read_values(rows.token[row], rows.token_width[row], begin, token[:count])
            if masked or form != NO_TARGET_COLUMN:
                read_labels(form, rows.target[row], rows.target_width[row], begin, zeros[:count], label[:count])
            if not masked:
                # No padding: every comparison below is free of branches, so that it vectorises.
                bits = np.int64(0)
                for i in range(count):
                    bits |= token[i]
                num_targets = 0
                if form == NO_TARGET_COLUMN:
                    label[:count] = 0
                    num_targets = count
                else:
                    for i in range(count):
                        bits |= 0 if label[i] == IGNORE else label[i]
                        num_targets += label[i] != IGNORE
                if bits >> 31:
                    for i in range(count):
                        if token[i] >> 31:
                            return _BAD_TOKEN, row, begin + i
                        if label[i] != IGNORE and label[i] >> 31:
                            return _BAD_LABEL, row, begin + i
                if begin == 0:
                    facts[6, row] = label[0] != IGNORE
                if begin + count <= limit:
                    facts[4, row] += num_targets
                elif begin >= limit:
                    facts[5, row] += num_targets
                else:
                    for i in range(count):
                        facts[4 if begin + i < limit else 5, row] += label[i] != IGNORE
                continue
            read_values(rows.mask[row], rows.mask_width[row], begin, mask[:count])
            for i in range(count):
                is_target = label[i] != IGNORE
                if mask[i] == 0:
                    facts[3, row] += is_target
                    continue
                if token[i] >> 31:
                    return _BAD_TOKEN, row, begin + i
                if is_target and label[i] >> 31:
                    return _BAD_LABEL, row, begin + i
                if kept == 0:
                    first = begin + i
                    facts[6, row] = is_target
                last = begin + i
                facts[4 if kept < limit else 5, row] += is_target
                kept += 1
        if masked:
            facts[0, row] = kept
            facts[1, row] = first if last - first + 1 == kept else -1
            if kept == 0:
                facts[1, row] = 0
            facts[2, row] = rows.length[row] - kept
        else:
            facts[0, row] = rows.length[row]
    return 0, 0, 0
