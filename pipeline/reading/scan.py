"""One pass over the tokens of a run of rows: are they valid, and what has to be counted of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from pipeline.base.errors import DataError
from pipeline.reading.rows import IGNORE, LABELS, NO_TARGET_COLUMN, Addresses, Rows, read_values
from strategies.compiled import kernel

Int32Array = npt.NDArray[np.int32]

MOST_TOKENS = 2**31 - 1
"""In one sample: offsets inside a sample are int32."""

_BLOCK = 4096  # tokens looked at together, so that copies stay in the first-level cache


@dataclass(frozen=True, kw_only=True)
class Facts:
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
    def join(parts: list[Facts]) -> Facts:
        """Facts of consecutive runs of rows as those of one."""
        return Facts(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Facts)})


def scan(rows: Rows, limit: int, locate: Callable[[int], str], columns: Callable[[int], tuple[str, str]]) -> Facts:
    """Check and count the tokens of `rows`.

    limit: kept tokens that count as the head of a sample.
    locate: row within `rows` -> words naming it; columns: row -> the names of its token and target columns.
    Raises `DataError` for a token id or label outside 0..2^31-1 (labels may also be -100).
    """
    length = rows.addresses.length
    if len(length) and length.max() > MOST_TOKENS:
        row = int(length.argmax())
        raise DataError(f"{locate(row)}: {length[row]} tokens in one sample; at most {MOST_TOKENS} are supported")
    facts = np.zeros((len(fields(Facts)), len(rows)), np.int32)
    fault, row, position = _scan(rows.addresses, limit, facts)
    if fault:
        token_column, target_column = columns(row)
        name = token_column if fault == _BAD_TOKEN else target_column
        wanted = "0 to 2147483647" if fault == _BAD_TOKEN else "-100 or 0 to 2147483647"
        value = rows.value(row, name, position)
        raise DataError(f"{locate(row)}: column {name!r} holds {value} at position {position}; it must be {wanted}")
    return Facts(**{f.name: column for f, column in zip(fields(Facts), facts, strict=True)})


_BAD_TOKEN, _BAD_LABEL = 1, 2


@kernel
def _scan(rows: Addresses, limit: int, facts: Int32Array) -> tuple[int, int, int]:
    """Fill `facts` (one row a field of Facts); returns (fault, row, position), fault 0 for none."""
    token = np.empty(_BLOCK, np.int64)
    target = np.empty(_BLOCK, np.int64)
    mask = np.empty(_BLOCK, np.int64)
    for row in range(rows.length.shape[0]):
        form = rows.target_form[row]
        masked = rows.mask[row] != 0
        kept = 0
        first = -1
        last = -1
        for begin in range(0, rows.length[row], _BLOCK):
            count = min(_BLOCK, rows.length[row] - begin)
            read_values(rows.token[row], rows.token_width[row], begin, token[:count])
            if form != NO_TARGET_COLUMN:
                read_values(rows.target[row], rows.target_width[row], begin, target[:count])
            if not masked:
                # No padding: every comparison below is free of branches, so that it vectorises.
                bits = np.int64(0)
                for i in range(count):
                    bits |= token[i]
                if bits >> 31:
                    for i in range(count):
                        if token[i] >> 31:
                            return _BAD_TOKEN, row, begin + i
                if form == NO_TARGET_COLUMN:
                    num_targets = count
                    target[0] = 0
                elif form == LABELS:
                    num_targets = 0
                    bits = np.int64(0)
                    for i in range(count):
                        bits |= 0 if target[i] == IGNORE else target[i]
                        num_targets += target[i] != IGNORE
                    if bits >> 31:
                        for i in range(count):
                            if target[i] != IGNORE and target[i] >> 31:
                                return _BAD_LABEL, row, begin + i
                else:
                    num_targets = 0
                    for i in range(count):
                        target[i] = IGNORE if target[i] == 0 else 0
                        num_targets += target[i] != IGNORE
                if begin == 0:
                    facts[6, row] = form == NO_TARGET_COLUMN or target[0] != IGNORE
                if begin + count <= limit:
                    facts[4, row] += num_targets
                elif begin >= limit:
                    facts[5, row] += num_targets
                else:
                    for i in range(count):
                        if form == NO_TARGET_COLUMN or target[i] != IGNORE:
                            facts[4 if begin + i < limit else 5, row] += 1
                continue
            read_values(rows.mask[row], rows.mask_width[row], begin, mask[:count])
            for i in range(count):
                if form == NO_TARGET_COLUMN:
                    is_target = True
                elif form == LABELS:
                    is_target = target[i] != IGNORE
                else:
                    is_target = target[i] != 0
                if mask[i] == 0:
                    facts[3, row] += is_target
                    continue
                if token[i] >> 31:
                    return _BAD_TOKEN, row, begin + i
                if form == LABELS and is_target and target[i] >> 31:
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
