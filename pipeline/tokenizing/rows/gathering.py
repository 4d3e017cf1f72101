"""Rows that are messages, gathered into trees: one pass over a file, as a tree's rows may stand anywhere in it.

Memory: the messages of one file, the columns that are read alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.reading.decoding.raw import BLOCK_BYTES, RawBlock, RawFile
from pipeline.tokenizing.rows.formats import Format
from pipeline.tokenizing.rows.trees import ROOT, Tree, TreeFault

_NOBODY = ("", 0, "0", -1, "-1")
"""What some write for the parent of a message that has none, unless it is the id of another."""


@dataclass(frozen=True, slots=True)
class TreeBlock:
    """Whole trees of one file, in the order of their first messages."""

    trees: list[Tree]
    num_bytes: int
    """Characters of all paths."""

    bytes_read: int
    """Its part of the file, for the progress bar."""

    unread: Mapping[str, int] = field(default_factory=dict)
    """Column that is not read -> rows in which it has content; the first block has those of the whole file."""

    def rows(self) -> Iterator[Tree]:
        """Each tree."""
        return iter(self.trees)

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        return sum(len(tree.rows) for tree in self.trees)


def blocks_of(file: RawFile, format_: Format) -> Iterator[RawBlock | TreeBlock]:
    """The rows of a file, read anew at each call: as they stand there, or gathered into trees where they are messages.

    Raises `DataError` for damaged content.
    """
    if format_.name == "tree" and "parent" in format_.columns:
        return _tree_blocks(file, format_)
    return file.blocks(format_.present(file.columns))


def _tree_blocks(file: RawFile, format_: Format) -> Iterator[TreeBlock]:
    """Trees, in blocks of about so much text as other blocks have."""
    gathering = _Gathering(format_)
    for block in file.blocks(format_.present(file.columns)):
        gathering.add(block)
    waiting: list[Tree] = []
    size = rows_done = bytes_done = 0
    for tree in gathering.trees():
        waiting.append(tree)
        rows_done += len(tree.rows)
        size += _size(tree, format_.columns["text"])
        if size >= BLOCK_BYTES:
            until = gathering.bytes_read * rows_done // gathering.num_rows
            yield TreeBlock(waiting, size, until - bytes_done, gathering.unread)
            waiting, size, bytes_done, gathering.unread = [], 0, until, Counter()
    if waiting:
        yield TreeBlock(waiting, size, gathering.bytes_read - bytes_done, gathering.unread)


def _size(tree: Tree, column: str) -> int:
    """Characters of all paths."""
    sizes: list[int] = []
    for message, parent in zip(tree.messages, tree.parents, strict=True):
        text = message.get(column)
        sizes.append((len(text) if isinstance(text, str) else 0) + (0 if parent == ROOT else sizes[parent]))
    inner = set(tree.parents)
    return sum(size for number, size in enumerate(sizes) if number not in inner)


@dataclass(slots=True)
class _Gathering:
    """Messages of a file, by their rows."""

    format: Format
    num_rows: int = 0
    bytes_read: int = 0
    unread: Counter[str] = field(default_factory=Counter)
    _messages: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    _row_of: dict[Any, int] = field(default_factory=dict)  # by the message's id
    _alone: dict[int, TreeFault] = field(default_factory=dict)  # rows that no other row can belong to

    def add(self, block: RawBlock) -> None:
        """Take in the rows that follow."""
        columns = set(self.format.columns.values()) | set(self.format.guards)
        id_column = self.format.columns["id"]
        for row, content in enumerate(block.rows(), self.num_rows):
            self.num_rows = row + 1
            if isinstance(content, ValueError):
                self._messages[row] = {}
                self._alone[row] = TreeFault("unreadable", str(content))
                continue
            self.unread.update(self.format.unread(content))
            self._messages[row] = {key: value for key, value in content.items() if key in columns}
            name = content.get(id_column)
            if not isinstance(name, str | int) or isinstance(name, bool):
                self._alone[row] = TreeFault("no_id", f"column {id_column!r} has no id (it is {name!r})")
            elif self._row_of.setdefault(name, row) != row:
                first = self._row_of[name]
                self._alone[row] = TreeFault("duplicate_id", f"its {id_column} {name!r} is that of row {first}, too")
        self.bytes_read += block.bytes_read
        self.unread.update(block.unread)

    def trees(self) -> Iterator[Tree]:
        """All trees, each row in one of them, in the order of their first messages."""
        column = self.format.columns["parent"]
        replies: dict[int, list[int]] = {}
        faults: dict[int, TreeFault | None] = {}  # by first message
        for row, message in self._messages.items():
            parent = message.get(column)
            parent_row = self._row_of.get(parent) if isinstance(parent, str | int | float) else None
            if row in self._alone:
                faults[row] = self._alone[row]
            elif self._is_nobody(parent):
                faults[row] = None
            elif parent_row is None:
                faults[row] = TreeFault(
                    "no_parent",
                    f"the message that it replies to ({column} {parent!r}) is not in the file;"
                    " all messages of a tree have to stand in one file",
                )
            else:
                replies.setdefault(parent_row, []).append(row)
        self._add_cycles(replies, faults)
        for row in sorted(faults):
            yield self._tree(row, replies, faults[row])

    def _is_nobody(self, parent: Any) -> bool:
        """Whether the parent of a message says that it has none."""
        if parent is None or (isinstance(parent, float) and math.isnan(parent)):
            return True
        return parent in _NOBODY and self._row_of.keys().isdisjoint((parent, str(parent)))

    def _add_cycles(self, replies: dict[int, list[int]], faults: dict[int, TreeFault | None]) -> None:
        """Make a first message of one message of each cycle, which no way leads to from another first message."""
        reached: set[int] = set()
        for row in faults:
            reached.update(self._below(row, replies))
        parent_of = {reply: row for row, of_row in replies.items() for reply in of_row}
        for row in self._messages:
            if row in reached:
                continue
            seen: dict[int, None] = {}
            at = row
            while at not in seen:
                seen[at] = None
                at = parent_of[at]
            cycle = list(seen)[list(seen).index(at) :]
            first = min(cycle)
            replies[parent_of[first]].remove(first)
            others = "itself" if len(cycle) == 1 else f"row {parent_of[first]}, and that, in the end, to it"
            faults[first] = TreeFault("cycle", f"it replies to {others}")
            reached.update(self._below(first, replies))

    @staticmethod
    def _below(row: int, replies: Mapping[int, list[int]]) -> Iterator[int]:
        """A message, and all that reply to it or to its replies, each after what it replies to."""
        waiting = [row]
        while waiting:
            at = waiting.pop()
            yield at
            waiting += reversed(replies.get(at, ()))

    def _tree(self, first: int, replies: Mapping[int, list[int]], fault: TreeFault | None) -> Tree:
        rows = list(self._below(first, replies))
        number_of = {row: number for number, row in enumerate(rows)}
        parents = [ROOT] * len(rows)
        for row in rows:
            for reply in replies.get(row, ()):
                parents[number_of[reply]] = number_of[row]
        return Tree(messages=[self._messages[row] for row in rows], parents=parents, rows=rows, fault=fault)
