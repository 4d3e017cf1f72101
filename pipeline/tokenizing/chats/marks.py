"""What a template marks as generated, held against the turns."""

from __future__ import annotations

from pipeline.tokenizing.chats.shapes import FoundTurns, Targets, Turn
from pipeline.tokenizing.chats.template import Span


def owners_of(marks: list[Span], answers: list[int], found: FoundTurns) -> list[int | None]:
    """The turn that each mark is in; None where that cannot be told."""
    if len(marks) == len(answers):
        return list(answers)
    spans = {
        number: (turn.parts[0][1][0] if turn.parts else turn.end, (turn.end_tokens or (0, turn.end))[1])
        for number, turn in found.turns.items()
    }
    return [
        next((number for number, span in spans.items() if mark[0] < span[1] and mark[1] > span[0]), None)
        for mark in marks
    ]


def within(mark: Span, turn: Turn | None) -> Targets:
    """What a mark holds, by kind."""
    if turn is None:
        return [("answer", mark)]
    parts = [(kind, span) for kind, span in turn.parts]
    if turn.end_tokens is not None:
        parts.append(("end", turn.end_tokens))
    found: Targets = []
    at = mark[0]
    for kind, span in parts:
        begin, end = max(span[0], at), min(span[1], mark[1])
        if begin >= end:
            continue
        if begin > at:
            found.append(("inserted", (at, begin)))
        found.append((kind, (begin, end)))
        at = end
    if at < mark[1]:
        found.append(("end" if found and found[-1][0] == "end" else "inserted", (at, mark[1])))
    return found
