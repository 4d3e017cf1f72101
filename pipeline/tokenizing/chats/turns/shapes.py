"""Kinds of chats in a template's renderings, and the turns found in one rendering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

from pipeline.tokenizing.chats.turns.layout import Layout, Leaf, LeafKind, common
from pipeline.tokenizing.rows.samples import Chat
from pipeline.tokenizing.tokens.places import Span

Kind = Literal["answer", "reasoning", "call", "inserted", "end"]
"""What a target is: of a text that somebody said, of what the template inserts, or of a turn's end."""

KINDS: dict[LeafKind, Kind] = {"content": "answer", "reasoning": "reasoning", "call": "call", "name": "inserted"}
"""What the leaves of an assistant turn are."""

Targets = list[tuple[Kind, Span]]
"""Characters to be trained, by kind and in order."""

Parts = list[tuple[str, Span]]
"""Characters by kind, in order: kinds of targets, and system, user, result (of a tool) or another role."""

Label = TypeVar("Label", bound=str)

_OF_ROLES = {"developer": "system"} | dict.fromkeys(("tool", "function", "observation", "ipython"), "result")


@dataclass(frozen=True, slots=True)
class TurnShape:
    """Where an assistant turn stands among the slots of a shape."""

    message: int
    slots: tuple[int, ...]
    """Its slots, in order; what stands between them is its own too."""

    kinds: tuple[LeafKind, ...]
    """What stands in them.  # length: num_slots"""

    begin: int
    """Characters of the piece before its first slot that are not its own."""

    begin_least: int
    """The same, if the turn were opened with thinking or without, whichever is less."""

    end: int
    """Characters of the piece after its last slot up to where its end begins."""

    end_tokens: int
    """The same, up to where the special tokens of its end end."""

    opener: Span | None
    """In that piece, the special token that begins what follows."""

    goes_on: bool = False
    """Whether the next turn is the same one to the template, which ends them together."""


@dataclass(frozen=True, slots=True)
class Rewriting:
    """An answer (the turns between two user turns), or a part of one, that is rendered otherwise once it is history."""

    turns: range
    """Its messages."""

    loses: bool
    """Whether reasoning is left out; otherwise only what the template inserts differs."""

    goes_on: bool
    """Whether it goes on with an answer whose beginning is rendered otherwise by then."""


@dataclass(slots=True)
class Shape:
    """A kind of chat: all that have the same roles, keys and number of calls. It holds no text of any of them."""

    layout: Layout
    turns: dict[int, TurnShape]
    """By message."""

    untold: dict[int, str]
    """Why it cannot be told where a turn begins, by message."""

    missing: list[int]
    """Numbers of the leaves that stand nowhere."""

    lost: frozenset[int]
    """The messages whose reasoning stands nowhere."""

    unbegun: dict[int, TurnShape]
    """The turns among `untold` that only lack where they begin."""

    by_words: bool | None
    """Whether turns begin elsewhere by the words of a chat; None until one was held against its prompts."""

    unprompted: frozenset[int]
    """Turns before which something of the generation prompt is not written."""

    rewritten: list[Rewriting] | None = None
    """None until somebody asked."""

    def samples(self) -> list[int]:
        """Assistant turns of each kind, by what is written before them: the first and the last."""
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for number, turn in sorted((self.turns | self.unbegun).items()):
            piece = self.layout.pieces[turn.slots[0]]
            last[piece] = number
            first.setdefault(piece, number)
        return sorted({*first.values(), *last.values()})

    def up_to(self, message: int) -> tuple[list[int], list[str], str] | None:
        """What is written up to the end of what an assistant turn says: slots, pieces before each, and after them."""
        turn = self.turns.get(message)
        if turn is None:
            return None
        last = turn.slots[-1]
        pieces = self.layout.pieces
        return self.layout.slots[: last + 1], pieces[: last + 1], pieces[last + 1][: turn.end]


class Turn(NamedTuple):
    """An assistant turn in a rendered chat."""

    message: int
    parts: list[tuple[Kind, Span]]
    """What the model has to write, in order and without gaps, up to its end."""

    end: int
    """Where the last of its parts ends."""

    end_tokens: Span | None
    """The special tokens that end it, and what stands between them; None if there is none."""

    opener: Span | None
    """The special token that begins what follows."""

    after: str
    """What follows what it says."""

    begin_least: int
    """Where it would begin if it were opened without thinking and with, whichever is earlier."""

    texts: list[tuple[LeafKind, Span]]
    """Where what it says stands."""

    goes_on: bool = False
    """Whether the next turn is the same one to the template, which ends them together."""


@dataclass(slots=True)
class FoundTurns:
    """The assistant turns of a rendered chat."""

    turns: dict[int, Turn]
    """By message."""

    untold: dict[int, str]
    """Why a turn is not among them, by message."""

    missing: list[Leaf]
    """What stands nowhere."""

    unbegun: Mapping[int, Turn] = field(default_factory=dict)
    """The turns among `untold` that only lack where they begin, which is told by marks alone: their first part holds
    what is written before it, too.
    """

    leaves: Sequence[Leaf] = ()
    """What is said, as far as it was looked for."""

    slots: Sequence[int] = ()
    """The numbers of the leaves that stand in it, in order."""

    spans: Sequence[Span] = ()
    """Where they stand.  # length: num_slots"""

    knows_others: bool = False
    """Whether the leaves are also of others than the assistant."""

    unprompted: frozenset[int] = frozenset()
    """As of a shape, or of the prompt that their chat's words give."""


def parts_of(chat: Chat, found: FoundTurns, puts: Sequence[Span]) -> Parts:
    """The pieces of a chat's text that somebody says or has to write; the rest is the template's.

    puts: characters that were put into the text after turns were found in it, in order.
    """
    parts: Parts = []
    for number, span in zip(found.slots, found.spans, strict=True):
        leaf = found.leaves[number]
        if leaf.message not in found.turns:
            role = str(chat.messages[leaf.message]["role"])
            parts.append((KINDS[leaf.kind] if role == "assistant" else _OF_ROLES.get(role, role), span))
    for turn in found.turns.values():
        parts += turn.parts
        if turn.end_tokens is not None:
            parts.append(("end", turn.end_tokens))
    shifted: Parts = []
    for kind, (begin, end) in sorted(parts, key=lambda part: part[1]):
        shift = 0
        for put in puts:
            if put[0] <= begin + shift:
                shift += put[1] - put[0]
        shifted.append((kind, (begin + shift, end + shift)))
    return shifted


def parts_in(opened: str, others: Sequence[tuple[str, Parts]]) -> Parts:
    """The pieces of a text that ends with a generation prompt, by the one of others that is longest like it.

    others: texts of which the pieces are known, and of what may follow them. What stands where none is like it may be
    anybody's.
    """
    same, text, parts = max(((common(opened, text), text, parts) for text, parts in others), key=lambda one: one[0])
    told = [part for part in parts if part[1][1] <= same]
    is_whole = all(kind == "end" for kind, span in parts if same < span[1] <= len(text))
    return told if is_whole else [*told, ("text", (told[-1][1][1] if told else 0, len(opened)))]


def shifted(parts: Sequence[tuple[Label, Span]], shift: int, since: int = 0) -> list[tuple[Label, Span]]:
    """Parts of a text, from a character on, once something was put in front of them."""
    return [(kind, (begin + shift, end + shift)) for kind, (begin, end) in parts if begin >= since]
