"""Where a value of a row stands: a column, or a key inside one, as in `data.messages`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.tokenizing.rows.messages import parsed


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """The value at a path, None where there is none. A column of that very name goes first; JSON text is entered."""
    if path in row:
        return row[path]
    for head, rest in _cuts(path) if "." in path else ():
        inner = parsed(row.get(head))
        if isinstance(inner, dict):
            return value_at(inner, rest)
    return None


def columns_of(path: str) -> list[str]:
    """The columns that a path may begin with."""
    return [path, *(head for head, _ in _cuts(path))]


def column_of(path: str, columns: Sequence[str]) -> str | None:
    """The column that a path begins with, if it is there."""
    return next((column for column in columns_of(path) if column in columns), None)


def _cuts(path: str) -> Iterator[tuple[str, str]]:
    for at, character in enumerate(path):
        if character == ".":
            yield path[:at], path[at + 1 :]
