"""What a template marks as generated, and what the data marks as not trained, held against the turns."""

from __future__ import annotations

from bisect import bisect_right
from operator import itemgetter

from pipeline.tokenizing.chats.reasoning import ReasoningMarks
from pipeline.tokenizing.chats.turns.shapes import FoundTurns, Targets, Turn
from pipeline.tokenizing.rows.messages import Message, PartMarks, calls_of
from pipeline.tokenizing.tokens.places import Span


def owners_of(marks: list[Span], answers: list[int], found: FoundTurns) -> list[int | None]:
    """The turn that each mark is in; None where that cannot be told."""
    if len(marks) == len(answers):
        return list(answers)
    spans = sorted(
        ((turn.end_tokens or (0, turn.end))[1], turn.parts[0][1][0] if turn.parts else turn.end, number)
        for number, turn in found.turns.items()
    )
    owners: list[int | None] = []
    for begin, end in marks:
        at = bisect_right(spans, begin, key=itemgetter(0))  # the first that ends behind its begin
        owners.append(spans[at][2] if at < len(spans) and end > spans[at][1] else None)
    return owners


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


def ends_trained(marked: PartMarks, message: Message) -> bool:
    """Whether the end of a turn is trained: if the last that it says is."""
    return bool(calls_of(message)) or [trained for _, text, trained in marked.parts if text.strip()][-1]


def without(targets: Targets, spans: list[Span]) -> Targets:
    """Targets without some characters."""
    for begin, end in spans:
        cut: Targets = []
        for kind, (first, stop) in targets:
            left, right = (first, min(stop, begin)), (max(first, end), stop)
            cut += [(kind, span) for span in (left, right) if span[0] < span[1]]
        targets = cut
    return targets


def untrained(marked: PartMarks, turn: Turn, text: str, marks: ReasoningMarks) -> list[Span] | None:
    """The characters of a rendered turn that stand in parts that are not trained; None where that cannot be told.

    marks: of inline reasoning, which is a text of its own to the turn though it is said in its content.
    """
    spans: list[Span] = []
    for is_thinking in (True, False):
        parts = [(said, trained) for is_thought, said, trained in marked.parts if is_thought is is_thinking]
        source = "".join(said for said, _ in parts)
        if all(trained or not said.strip() for said, trained in parts):
            continue
        texts = [span for kind, span in turn.texts if kind == ("reasoning" if is_thinking else "content")]
        if is_thinking and not texts:  # it was left out
            continue
        inline = None if is_thinking else marks.inline_of(source)
        if inline is not None:
            texts = [span for kind, span in turn.texts if kind in ("reasoning", "content")]
        places = _places(source, [text[slice(*span)] for span in texts])
        if places is None:
            return None
        least = places[0] if inline is not None and len(texts) == 1 else 0  # its reasoning was left out
        at = 0
        for said, trained in parts:
            begin, at = max(at, least), at + len(said)
            if trained or not said.strip() or at <= begin:
                continue
            first, last = (_place(source, place, list(zip(places, texts, strict=True)), text) for place in (begin, at))
            if first is None or last is None:
                return None
            spans.append((first, last))
    return spans


def _places(source: str, texts: list[str]) -> list[int] | None:
    """Where rendered texts stand in what was said, the last at its end; None where they do not."""
    places: list[int] = []
    before = source.rstrip() if texts and not source.endswith(texts[-1]) else source
    for told in reversed(texts):
        at = before.rfind(told) if places else len(before) - len(told)
        if at < 0 or not before.startswith(told, at):
            return None
        places.insert(0, at)
        before = before[:at]
    return places


def _place(source: str, at: int, places: list[tuple[int, Span]], text: str) -> int | None:
    """Where a place in what was said is in the rendering; None where that cannot be told."""
    for begin, span in places:
        if begin <= at <= begin + span[1] - span[0]:
            return span[0] + at - begin
    for begin, span in places:
        if begin > at:
            gap, before = source[at:begin], text[: span[0]]
            if before.endswith(gap):
                return span[0] - len(gap)
            mark, before = gap.strip(), before.rstrip()
            return span[0] if not mark else len(before) - len(mark) if before.endswith(mark) else None
    end = places[-1][0] + places[-1][1][1] - places[-1][1][0] if places else 0
    return places[-1][1][1] if places and source[end:at].isspace() else None
