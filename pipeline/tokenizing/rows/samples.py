"""What a raw row becomes before it is rendered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pipeline.tokenizing.rows.messages import Mark, Message, PartMarks

CLOSING = "</think>"
"""The usual mark that ends inline reasoning."""


@dataclass(frozen=True)
class Chat:
    """Turns to be rendered by a chat template."""

    messages: list[Message]
    tools: list[Any] | None = None
    num_prompt: int = 0
    """Turns at the beginning that are prompt whoever speaks."""

    marks: Sequence[Mark] = field(default=())
    """Whether the data says of a turn that it is trained.  # length: num_messages, or none"""

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """What its row tells the template besides, over what the run does."""

    num_shared: int = 0
    """Turns at the beginning that an earlier chat of the same tree has, too."""

    rows: Sequence[int] = field(default=(), compare=False)
    """The row of the file that each turn is, where it is one.  # length: num_messages, or none"""

    notes: Sequence[str] = field(default=(), compare=False)
    """What is to be said about its row; see `tally.NOTES`."""

    @cached_property
    def plain_roles(self) -> tuple[str, ...] | None:
        """The roles of a chat that is nothing but roles and texts, so that only they decide how it is rendered."""
        if self.tools is not None:
            return None
        for turn in self.messages:
            content = turn.get("content")
            if len(turn) != 2 or not isinstance(content, str) or CLOSING in content or not content.strip():
                return None
        return tuple([turn["role"] for turn in self.messages])

    @property
    def asked(self) -> str:
        """What the user says in it."""
        spoken = [turn for turn in self.messages if isinstance(turn.get("content"), str)]
        return "\n".join(turn["content"] for turn in spoken if turn["role"] == "user")

    def up_to(self, stop: int) -> Chat:
        """Its turns before the one numbered `stop`."""
        return replace(self, messages=self.messages[:stop], marks=self.marks[:stop], rows=self.rows[:stop])

    def with_messages(self, messages: list[Message]) -> Chat:
        """The same chat, its turns written otherwise."""
        return replace(self, messages=messages)

    def marked(self, number: int) -> bool | None:
        """Whether the data says of a turn that it, or a part of it, is trained; None where it says nothing."""
        mark = self.marks[number] if self.marks else None
        return True if isinstance(mark, PartMarks) else mark

    @property
    def withholds(self) -> bool:
        """Whether the data marks a turn, or a part of one, as not trained."""
        return any(mark is False or isinstance(mark, PartMarks) for mark in self.marks)

    def parts_marked(self, number: int) -> PartMarks | None:
        """What the data says of the parts of a turn, where some are trained and some are not."""
        mark = self.marks[number] if self.marks else None
        return mark if isinstance(mark, PartMarks) else None


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and what is to follow it, end to end."""

    prompt: str
    completion: str
    notes: Sequence[str] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text, all of it trained."""

    text: str


Sample = Chat | Pair | Text
