"""Which answers a template renders otherwise once they are history, so that they need samples of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby, pairwise

from pipeline.tokenizing.chats.turns.shapes import Rewriting, Shape
from pipeline.tokenizing.rows.messages import Message
from pipeline.tokenizing.rows.samples import Chat

ShapeOf = Callable[[int], Shape | None]
"""The shape of the turns before some number, as far as it is of the last answer among them."""


_ENDS = 4
"""At either end of a run of answers of the same kind, how many are looked at whatever the others are."""

_MOST_CHANGES = 2
"""Along a run, how often what becomes of an answer may change before all are looked at: the first may be another, and
the last few."""


def rewritten(chat: Chat, kinds: Sequence[str], shape: Shape, shape_of: ShapeOf) -> list[Rewriting]:
    """The answers that would be rendered otherwise if the chat ended with them, in order.

    An answer is what stands between two user turns. One that itself leaves out what was thought before its calls, once
    it goes on (gpt-oss), is cut there. To look at one is a rendering of all before it, so that all would be the square
    of a long chat: in a run of answers of the same kind (kinds: of the turns; also of the user turn before), those at
    its ends are looked at and the one in the middle, and between two that differ, down to where they do. Only a
    template that does otherwise with some few in the midst of like answers would not be noticed.
    """
    stops = [number for number, turn in enumerate(chat.messages) if turn["role"] == "user"] + [len(chat.messages)]
    answers = [range(begin, stop) for begin, stop in pairwise([0, *stops])]
    found: list[Rewriting] = []
    for _, run in groupby(answers, lambda answer: [kinds[turn] for turn in answer]):
        found += _in_run(list(run), lambda answer: _rewritten(chat, answer, shape, shape_of))
    return found


def _in_run(answers: list[range], look: Callable[[range], list[Rewriting]]) -> list[Rewriting]:
    """As `rewritten`, of answers of the same kind that follow each other. look: at one of them."""
    seen: dict[int, list[Rewriting]] = {}

    def told(number: int) -> list[Rewriting]:
        if number not in seen:
            seen[number] = look(answers[number])
        return _from(seen[number], answers[number].start)

    def look_between(first: int, last: int) -> None:
        middle = (first + last) // 2
        if middle > first and not told(first) == told(middle) == told(last):
            look_between(first, middle)
            look_between(middle, last)

    numbers = range(len(answers))
    for number in {*numbers[:_ENDS], *numbers[-_ENDS:]}:
        told(number)
    if len(answers) > 2 * _ENDS:
        look_between(_ENDS - 1, len(answers) - _ENDS)
    changes = sum(told(one) != told(other) for one, other in pairwise(sorted(seen)))
    found, before = [], 0
    for number in numbers:
        if number in seen or changes > _MOST_CHANGES:
            before = number
        found += _from(told(before), -answers[number].start)
    return found


def _rewritten(chat: Chat, turns: range, shape: Shape, shape_of: ShapeOf) -> list[Rewriting]:
    """As `rewritten`, of one answer, its user turn first."""
    stop = turns.stop
    answers = [number for number in turns if chat.messages[number]["role"] == "assistant"]
    then = shape if stop == len(chat.messages) else shape_of(stop) if answers else None
    if then is None or not answers:
        return []
    begin = turns.start + (chat.messages[turns.start]["role"] == "user")
    *cuts, last = _cuts(range(begin, stop), then, shape_of)
    if not cuts and then.up_to(answers[-1]) == shape.up_to(answers[-1]):
        return []
    loses = any(message < stop for message in shape.lost - then.lost)
    found = [Rewriting(cut, loses=True, goes_on=number > 0) for number, cut in enumerate(cuts)]
    return [*found, Rewriting(last, loses=loses, goes_on=bool(cuts))]


def _from(found: list[Rewriting], start: int) -> list[Rewriting]:
    """The same, its turns numbered from another on."""
    return [replace(one, turns=range(one.turns.start - start, one.turns.stop - start)) for one in found]


def last_run(messages: list[Message]) -> int:
    """Where the last turns begin that the assistant has without a break."""
    last = max((number for number, turn in enumerate(messages) if turn["role"] == "assistant"), default=0)
    while last > 0 and messages[last - 1]["role"] == "assistant":
        last -= 1
    return last


def _cuts(turns: range, shape: Shape, shape_of: ShapeOf) -> list[range]:
    """An answer, cut after turns whose reasoning is written only while they are the last."""
    lost = [number for number in shape.lost if turns.start <= number < turns.stop - 1]
    cut = max(lost, default=-1) + 1
    then = shape_of(cut) if lost else None
    if then is None or cut - 1 in then.lost:
        return [turns]
    return [*_cuts(range(turns.start, cut), then, shape_of), range(cut, turns.stop)]
