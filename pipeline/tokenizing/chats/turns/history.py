"""Which answers a template renders otherwise once they are history, so that they need samples of their own."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.tokenizing.chats.turns.shapes import Rewriting, Shape
from pipeline.tokenizing.rows.messages import Message
from pipeline.tokenizing.rows.samples import Chat

ShapeOf = Callable[[int], Shape | None]
"""The shape of the turns before some number, as far as it is of the last answer among them."""


def rewritten(chat: Chat, shape: Shape, shape_of: ShapeOf) -> list[Rewriting]:
    """The answers that would be rendered otherwise if the chat ended with them, in order.

    An answer is what stands between two user turns. One that itself leaves out what was thought before its calls, once
    it goes on (gpt-oss), is cut there.
    """
    found: list[Rewriting] = []
    stops = [number for number, turn in enumerate(chat.messages) if turn["role"] == "user"] + [len(chat.messages)]
    for begin, stop in zip([0, *(stop + 1 for stop in stops)], stops, strict=False):
        answers = [number for number in range(begin, stop) if chat.messages[number]["role"] == "assistant"]
        then = shape if stop == len(chat.messages) else shape_of(stop) if answers else None
        if then is None or not answers:
            continue
        *cuts, last = _cuts(range(begin, stop), then, shape_of)
        if cuts or then.up_to(answers[-1]) != shape.up_to(answers[-1]):
            found += [Rewriting(cut, loses=True, goes_on=number > 0) for number, cut in enumerate(cuts)]
            loses = any(message < stop for message in shape.lost - then.lost)
            found.append(Rewriting(last, loses=loses, goes_on=bool(cuts)))
    return found


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
