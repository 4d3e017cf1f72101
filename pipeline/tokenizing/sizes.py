"""How many bytes a raw row has, which is known before anything is rendered or encoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.reading.decoding.raw import RawBlock, Row
from pipeline.tokenizing.rows.formats import Format
from pipeline.tokenizing.rows.gathering import TreeBlock
from pipeline.tokenizing.rows.messages import RowFault
from pipeline.tokenizing.rows.trees import Tree

TOO_LARGE = "too_large"
"""What rows with too many bytes are counted under."""


class SizeLimit:
    """The bytes that a row may have in the columns that are read; see `num_bytes`."""

    def __init__(self, format_: Format, max_row_bytes: int) -> None:
        self._format, self._most = format_, max_row_bytes

    def may_be_exceeded(self, block: RawBlock | TreeBlock) -> bool:
        """Whether a row of a block may have more, as far as can be told without parsing it."""
        content = block.content if isinstance(block, RawBlock) else None
        return not isinstance(content, bytes) or len(content) > self._most

    def check(self, row: Row | Tree) -> None:
        """Raise `RowFault` for a row that has more, which may be one of those that a tree was gathered from."""
        if isinstance(row, Tree):
            for number, message in zip(row.rows, row.messages, strict=True):
                self._check(message, number)
        else:
            self._check(row, None)

    def _check(self, row: Mapping[str, Any], number: int | None) -> None:
        if num_bytes(row.values()) <= self._most:
            return
        size = num_bytes(row[column] for column in self._format.present(tuple(row)))
        if size > self._most:
            raise RowFault(
                TOO_LARGE,
                f"it has {size:,} bytes, more than the {self._most:,} of --max-row-bytes; cut it into several rows, or"
                " allow more, which takes some 150 bytes of memory for each",
                number,
            )


def num_bytes(values: Iterable[Any]) -> int:
    """Bytes of the texts in values, as UTF-8, keys of objects among them, and one for each other value. O(values)."""
    size = 0
    level = list(values)
    while level:
        deeper: list[Any] = []
        for one in level:
            if isinstance(one, str):
                size += len(one) if one.isascii() else len(one.encode("utf-8", "surrogatepass"))
                continue
            size += len(one) if isinstance(one, bytes) else 1
            if isinstance(one, dict):
                deeper += one
                deeper += one.values()
            elif isinstance(one, list):
                deeper += one
        level = deeper
    return size
