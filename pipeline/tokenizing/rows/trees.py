"""Dialogue trees: messages that name the message they reply to, and the chats that their paths are.

Every answer is trained in one chat alone, the first that has it; in later ones it is context. What nobody answered is
left out first, so every path ends with an answer that no other path has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.tokenizing.rows.formats import Format
from pipeline.tokenizing.rows.messages import TURN_KEYS, Mark, Message, RowFault, kind_of, parsed
from pipeline.tokenizing.rows.samples import Chat

LEFT_OUT = {
    "deleted": "deleted, or in reply to such a message",
    "unanswered": "no answer of the assistant follows",
    "untrained": "no answer that is to be trained follows",
    "not_best": "not on the path of the best-ranked replies",
}
"""Why a message is in no path of its tree."""

ROOT = -1
"""In place of the message that a tree's first message replies to."""


@dataclass(frozen=True, slots=True)
class TreeFault:
    """Why none of the messages of a tree can be used."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """The messages of one dialogue, each after the one that it replies to, replies in the order of the file."""

    messages: Sequence[Mapping[str, Any]]
    """As the file has them.  # length: num_messages"""

    parents: Sequence[int]
    """The number of the message that each replies to; `ROOT` for the first.  # length: num_messages"""

    rows: Sequence[int] = ()
    """The row of the file that each message is; none where the tree is one row.  # length: num_messages, or 0"""

    fault: TreeFault | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """What a tree gives."""

    chats: list[Chat]
    left_out: dict[int, str]
    """Why a message is in none of them, by its number; see `LEFT_OUT`."""


class TreeReader:
    """Reads the trees of one format."""

    def __init__(self, format_: Format, paths: str) -> None:
        """paths: all, or best for the path of the best-ranked replies alone."""
        columns, reader = format_.columns, format_.reader
        self._format, self._takes_best = format_, paths == "best"
        self._is_flat = "parent" in columns
        self._prompt = columns.get("prompt")
        role, text = reader.role_key or "role", reader.content_key or "text"
        self._keys = {"id": "message_id", "rank": "rank", "deleted": "deleted", "role": role, "text": text}
        if self._is_flat:
            self._keys |= columns
        self._reader = replace(reader, role_key=None, content_key=None)

    def paths(self, row: Tree | Mapping[str, Any]) -> Paths:
        """The chats of a gathered tree, or of a row that is a tree. Raises `RowFault`."""
        tree = row if isinstance(row, Tree) else self._unnested(row)
        if tree.fault is not None:
            raise RowFault(tree.fault.reason, tree.fault.detail, _row_of(tree, 0))
        left_out: dict[int, str] = {}
        turns: dict[int, tuple[Message, Mark]] = {}
        for number, parent in enumerate(tree.parents):
            try:
                if left_out.get(parent) == "deleted" or self._is_deleted(tree.messages[number], number):
                    left_out[number] = "deleted"
                else:
                    turns[number] = self._turn(tree.messages[number], number)
            except RowFault as fault:
                raise RowFault(fault.reason, str(fault), _row_of(tree, number)) from None
        if 0 in turns and turns[0][0]["role"] == "assistant":
            where = self._where(tree.messages[0], 0)
            raise RowFault("assistant_root", f"{where}: a tree begins with the assistant", _row_of(tree, 0))
        replies = self._replies(tree, turns, left_out)
        notes = self._take_best(tree, replies, left_out) if self._takes_best else []
        return Paths(chats=_chats(tree, turns, replies, left_out, notes), left_out=left_out)

    def _unnested(self, row: Mapping[str, Any]) -> Tree:
        """A row whose messages hold their replies. Raises `RowFault` for what is none."""
        self._format.guard(row)
        root = parsed(row.get(self._prompt)) if self._prompt else row
        messages: list[Mapping[str, Any]] = []
        parents: list[int] = []
        waiting = [(root, ROOT)]
        while waiting:
            message, parent = waiting.pop()
            if not isinstance(message, Mapping):
                what = f"column {self._prompt!r}" if parent == ROOT else "a reply"
                raise RowFault("not_text", f"{what} is {kind_of(message)}; a message with role and text is needed")
            replies = message.get("replies") or []
            if not isinstance(replies, list):
                raise RowFault("not_text", f"replies is {kind_of(replies)}; a list of messages is needed")
            waiting += [(reply, len(messages)) for reply in reversed(replies)]
            messages.append(message)
            parents.append(parent)
        return Tree(messages=messages, parents=parents)

    def _turn(self, message: Mapping[str, Any], number: int) -> tuple[Message, Mark]:
        """A message as a turn, and whether it says that it is trained. Raises `RowFault`."""
        if self._is_flat:
            self._format.guard(message)
        turn = {key: message[key] for key in TURN_KEYS if message.get(key) is not None}
        text = self._keys["text"]
        if not self._is_flat and text not in message and not turn:
            keys = ", ".join(map(str, message)) or "none"
            told = f"it has no {text} (its keys are: {keys}); name it with --keys content=KEY"
            raise RowFault("null_content", f"{self._where(message, number)}: {told}")
        turn |= {"from": message.get(self._keys["role"]), "value": message.get(text)}
        return self._reader.message(turn, self._where(message, number))

    def _where(self, message: Mapping[str, Any], number: int) -> str:
        name = message.get(self._keys["id"])
        return f"message {number if name is None else name}"

    def _is_deleted(self, message: Mapping[str, Any], number: int) -> bool:
        value = message.get(self._keys["deleted"])
        known = parsed(value.lower()) if isinstance(value, str) else value
        if _is_null(known) or known in (0, 1):
            return known == 1
        told = f"{self._keys['deleted']} {value!r} is neither true nor false"
        raise RowFault("unknown_mark", f"{self._where(message, number)}: {told}")

    def _rank(self, tree: Tree, number: int) -> float:
        """The rank of a message among its siblings, those without one last."""
        rank = tree.messages[number].get(self._keys["rank"])
        if _is_null(rank):
            return math.inf
        if isinstance(rank, bool) or not isinstance(rank, int | float):
            where = self._where(tree.messages[number], number)
            detail = f"{where}: {self._keys['rank']} {rank!r} is no number; 0 is the best"
            raise RowFault("unknown_mark", detail, _row_of(tree, number))
        return rank

    @staticmethod
    def _replies(
        tree: Tree, turns: Mapping[int, tuple[Message, Mark]], left_out: dict[int, str]
    ) -> dict[int, list[int]]:
        """The replies to each message under which something is trained, `ROOT` included; others are left out."""
        is_answered, is_trained = set[int](), set[int]()
        replies: dict[int, list[int]] = {}
        for number in sorted(turns, reverse=True):
            message, mark = turns[number]
            parent = tree.parents[number]
            if message["role"] == "assistant":
                is_answered.add(number)
                if mark is not False:
                    is_trained.add(number)
            if number in is_trained:
                is_trained.add(parent)
                replies.setdefault(parent, []).insert(0, number)
            else:
                left_out[number] = "untrained" if number in is_answered else "unanswered"
            if number in is_answered:
                is_answered.add(parent)
        return replies

    def _take_best(self, tree: Tree, replies: dict[int, list[int]], left_out: dict[int, str]) -> list[str]:
        """Keep the best reply to each message alone, the first where none has a rank; returns what is to be said."""
        best: set[int] = set()
        notes: list[str] = []
        at = ROOT
        while of_message := replies.get(at):
            ranks = [self._rank(tree, number) for number in of_message]
            if len(ranks) > 1 and min(ranks) == math.inf:
                notes = ["unranked_replies"]
            at = of_message[ranks.index(min(ranks))]
            best.add(at)
        others = {number for of_message in replies.values() for number in of_message} - best
        left_out |= dict.fromkeys(sorted(others), "not_best")
        for parent in list(replies):
            replies[parent] = [number for number in replies[parent] if number in best]
        return notes


def _chats(
    tree: Tree,
    turns: Mapping[int, tuple[Message, Mark]],
    replies: Mapping[int, list[int]],
    left_out: Mapping[int, str],
    notes: list[str],
) -> list[Chat]:
    """A chat for each message without a reply, in order."""
    chats = []
    is_told: set[int] = set()  # messages that are in a chat
    for leaf in turns:
        if leaf in left_out or replies.get(leaf):
            continue
        path: list[int] = []
        at = leaf
        while at != ROOT:
            path.append(at)
            at = tree.parents[at]
        path.reverse()
        marks = [
            False if number in is_told and turns[number][0]["role"] == "assistant" else turns[number][1]
            for number in path
        ]
        chats.append(
            Chat(
                [turns[number][0] for number in path],
                marks=marks if any(mark is not None for mark in marks) else (),
                num_shared=sum(number in is_told for number in path),
                rows=[tree.rows[number] for number in path] if tree.rows else (),
                notes=notes,
            )
        )
        is_told.update(path)
    return chats


def _row_of(tree: Tree, number: int) -> int | None:
    """The row of the file that a message is; None where it is a part of one."""
    return tree.rows[number] if tree.rows else None


def _is_null(value: Any) -> bool:
    """Whether it is null, or the NaN that some writers put in its place."""
    return value is None or (isinstance(value, float) and math.isnan(value))
