"""A sample as text, with the characters that are to be trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.tokenizing.chats.turns.shapes import Parts, Targets
from pipeline.tokenizing.tokens.own_words import HIDDEN
from pipeline.tokenizing.tokens.places import Span


@dataclass(slots=True, kw_only=True)
class Rendering:
    """A sample as text."""

    text: str
    """With special tokens of people's own words hidden, if `hides`; see `OwnWords`."""

    targets: Targets | None
    """Characters to be trained, in order; None trains every token."""

    end_tokens: list[Span] = field(default_factory=list)
    """Characters of special tokens that end a trained turn."""

    prompt: str
    """What the user said, to embed the sample by; all of a plain text. Of a chat empty unless it is to be kept."""

    notes: list[str]
    """What is to be said about it; see `tally.NOTES`."""

    source_turn: int = 0
    """The last turn of its row that it has."""

    source_row: int | None = None
    """The row of the file that this turn is, where it is one."""

    without_reasoning: frozenset[int] = frozenset()
    """The turns whose reasoning the template leaves out of it."""

    turns: Mapping[str, int] = field(default_factory=dict)
    """Turns by what `Tally` counts of them; the first sample of a row has those of all."""

    parts: Callable[[], Parts] = list
    """What each piece of the text is, trained or not; made where it is asked for."""

    around: str = "inserted"
    """What the rest of the text is."""

    puts: list[Span] = field(default_factory=list)
    """Characters of end tokens that no template wrote."""

    @property
    def hides(self) -> bool:
        """Whether something is hidden in the text, to be encoded as plain text."""
        return HIDDEN in self.notes


def num_without_reasoning(renderings: Sequence[Rendering], first: int) -> int:
    """How many turns of a chat, from one of them on, have reasoning that stands in none of its samples."""
    without = {number for one in renderings for number in one.without_reasoning if number >= first}
    return sum(
        all(number in one.without_reasoning or number > one.source_turn for one in renderings) for number in without
    )
