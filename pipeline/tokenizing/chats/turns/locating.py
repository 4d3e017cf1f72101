"""Where a turn of some shape stands in the rendering of a chat: its parts, its end, and what follows."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.tokenizing.chats.reasoning import ReasoningMarks
from pipeline.tokenizing.chats.turns.layout import Layout, common, common_text
from pipeline.tokenizing.chats.turns.probes import Probes
from pipeline.tokenizing.chats.turns.shapes import KINDS, Kind, Shape, Turn, TurnShape
from pipeline.tokenizing.tokens.places import Span
from pipeline.tokenizing.tokens.tokenizer import TextTokenizer


class Locator:
    """Locates the turns of shapes in the renderings of one template."""

    def __init__(self, tokenizer: TextTokenizer, probes: Probes, marks: ReasoningMarks) -> None:
        self._special_texts, self._eos = tokenizer.special_texts, tokenizer.eos_text
        self._probes, self._marks = probes, marks

    def ending(self, tail: str, closed: str, *, is_call: bool = False) -> tuple[int, int, Span | None]:
        """Where in what follows a turn's last text its end begins, where its special tokens end, and the next opener.

        closed: what follows it at the end of a chat; is_call: whether arguments, and what is around them, come first.
        """
        shared = common_text(tail, closed, self._special_texts)
        start = self._probes.closing_from(shared) if is_call else 0
        first = stop = opener = None
        for match in self._special_texts.finditer(tail, start):
            if match[0] not in self._probes.endings and match[0] != self._eos:
                opener = match.span()
                break
            if stop is not None and tail[stop : match.start()].strip():
                break  # a text stands between: what follows is another's
            first = match.start() if first is None else first
            stop = match.end()
            if match[0] == self._eos:
                break
        if first is None or stop is None:
            written = shared.rstrip()
            end = len(written) if opener is None else min(len(written), opener[0])
            return end, end, opener
        return first, stop, opener

    def turn(
        self,
        turn: TurnShape,
        shape: Shape,
        layout: Layout,
        spans: Sequence[Span],
        chat_text: str,
        begins: tuple[int, int] | None = None,
    ) -> Turn:
        """A turn in the rendering of a chat, whose own layout has its arguments and ids, too.

        begins: where it begins in its own piece, and at the least, if elsewhere than in others of its shape.
        """
        first, last = turn.slots[0], turn.slots[-1]
        piece, own_piece = shape.layout.pieces[first], layout.pieces[first]
        tail, own_tail = shape.layout.pieces[last + 1], layout.pieces[last + 1]
        end, stop, opener = turn.end, turn.end_tokens, turn.opener
        if tail is not own_tail and tail != own_tail:  # arguments stand in it, or ids
            end, stop, opener = self._moved(tail, own_tail, end, stop, opener)
        at = spans[last][1]
        start = spans[first][0]
        if begins is None:
            begin = start - _before_end(turn.begin, piece, own_piece)
            least = start - _before_end(turn.begin_least, piece, own_piece)
        else:
            begin, least = (start - len(own_piece) + place for place in begins)
        parts = self._parts(turn, spans, begin, at + end, chat_text)
        return Turn(
            message=turn.message,
            parts=parts,
            end=at + end,
            end_tokens=(at + end, at + stop) if stop > end else None,
            opener=None if opener is None else (at + opener[0], at + opener[1]),
            after=chat_text[at + (end if turn.kinds[-1] == "call" else 0) : at + len(own_tail)],
            begin_least=least,
            texts=[(kind, spans[slot]) for slot, kind in zip(turn.slots, turn.kinds, strict=True)],
            goes_on=turn.goes_on,
        )

    def _moved(
        self, tail: str, own_tail: str, end: int, stop: int, opener: Span | None
    ) -> tuple[int, int, Span | None]:
        """Places in the tail of a shape as places in the tail that has arguments."""
        same = common(tail, own_tail)
        if stop <= same:
            return end, stop, opener if opener is None or opener[1] <= same else None
        rest = tail[same:stop]
        at = own_tail.rfind(rest)
        if at < 0:
            return self.ending(own_tail, "")
        moved = at - same
        return end + moved, stop + moved, None if opener is None else (opener[0] + moved, opener[1] + moved)

    def _parts(
        self, turn: TurnShape, spans: Sequence[Span], begin: int, end: int, chat_text: str
    ) -> list[tuple[Kind, Span]]:
        """What the model writes, cut at the texts; what ends a thought in front of a call is none of the call's."""
        parts: list[tuple[Kind, Span]] = []
        at = begin
        before: Kind | None = None
        for slot, kind in zip(turn.slots, turn.kinds, strict=True):
            span, this = spans[slot], KINDS[kind]
            around: Kind = "reasoning" if "reasoning" in (this, before) else "inserted"
            if this == "call" or before == "call":
                thought = 0 if before == "call" else self._thought_end(chat_text[at : span[0]], before)
                if thought:
                    parts.append((around, (at, at + thought)))
                at, around = at + thought, "call"
            start = span[0]
            led = self._before_mark(chat_text[at:start]) if this == "reasoning" else 0
            if led:
                parts.append(("call" if before == "call" else "inserted", (at, at + led)))
                at, around = at + led, "reasoning"
            if this == "answer" and around == "reasoning" and span[1] > start:  # a blank is of the word after it
                start = at + len(chat_text[at:start].rstrip(" "))
            if start > at:
                parts.append((around, (at, start)))
            if span[1] > span[0]:
                parts.append((this, (start, span[1])))
            at, before = max(at, span[1]), this
        if end > at:
            parts.append((before if before in ("call", "reasoning") else "inserted", (at, end)))
        return parts

    def _before_mark(self, piece: str) -> int:
        """How much of what stands in front of reasoning is none of it: what is written before its mark."""
        at = piece.rfind(self._marks.opening)
        return at if at > 0 and piece[:at].strip() else 0

    def _thought_end(self, piece: str, before: Kind | None) -> int:
        """How much of what stands in front of a call ends a thought: up to its mark, or to the first special token."""
        mark = piece.rfind(self._marks.closing)
        if mark >= 0:
            rest = piece[mark + len(self._marks.closing) :]
            return len(piece) - len(rest.lstrip())
        special = self._special_texts.search(piece) if before == "reasoning" else None
        return special.end() if special else 0


def _before_end(at: int, piece: str, own_piece: str) -> int:
    """How far before the end of a chat's own piece stands what is at a place in the piece of its shape."""
    is_there = piece is own_piece or own_piece.startswith(piece[:at])  # or arguments stand before it, or ids
    return len(own_piece if is_there else piece) - at
