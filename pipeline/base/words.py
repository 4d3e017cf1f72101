"""Pieces of messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 shard, 2,000 shards."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: Iterable[str], word: str) -> str:
    """Names as a message lists them: a, b or c."""
    *others, last = names
    return f"{', '.join(others)} {word} {last}" if others else last


def leads_out(path: str) -> bool:
    """Whether a relative path, with slashes, is no plain way into a folder, but may lead out of it."""
    return bool({"", ".", ".."} & set(path.split("/"))) or "\0" in path


def first_line(error: BaseException) -> str:
    """What an exception says, in one line: its first, and the next where that only announces it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])


def in_one_line(error: BaseException) -> str:
    """All that an exception says, with its lines joined."""
    return " ".join(str(error).split()) or type(error).__name__


def did_you_mean(text: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the nearest known one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(text, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(names)})"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a table, its columns two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
