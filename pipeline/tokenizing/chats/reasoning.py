"""Reasoning of assistant turns, under a key or inline in front of the content in marks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.base.words import listed
from pipeline.tokenizing.rows.messages import REASONING, Message, RowFault, reasoning_of, said_besides
from pipeline.tokenizing.rows.samples import CLOSING, Chat

_QUOTES = "`'\"“‘«(*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inline:
    """A content that begins with reasoning in marks, in its parts; put together they are the content."""

    before: str
    reasoning: str
    between: str
    answer: str


class ReasoningMarks:
    """The marks between which inline reasoning stands; the opening one may be missing, as templates write it too."""

    def __init__(self, opening: str = "<think>", closing: str = CLOSING) -> None:
        self.opening, self.closing = opening, closing
        self._is_other = closing != CLOSING  # which plain chats do not have anyhow

    def plain_roles(self, chat: Chat) -> tuple[str, ...] | None:
        """The roles of a chat that is nothing but roles and texts without reasoning."""
        roles = chat.plain_roles
        if roles is None or (self._is_other and any(self.closing in turn["content"] for turn in chat.messages)):
            return None
        return roles

    def apart(self, content: Any) -> Inline | None:
        """The parts of a content with marks at its beginning, also if nothing stands between them; None without.

        A closing mark alone ends reasoning too, unless it may as well be a word of the answer; see `is_unsure`.
        O(len(content)).
        """
        at = self._closing_in(content)
        if at is None or self._may_be_a_word(content, at):
            return None
        begin = self._opened(content)
        inside, answer = content[begin:at], content[at + len(self.closing) :].lstrip()
        reasoning = inside.strip()
        begin += len(inside) - len(inside.lstrip())
        return Inline(
            before=content[:begin],
            reasoning=reasoning,
            between=content[begin + len(reasoning) : len(content) - len(answer)],
            answer=answer,
        )

    def is_unsure(self, content: Any) -> bool:
        """Whether a closing mark stands alone amid a line, after a blank or a quotation mark: reasoning, or a word?"""
        at = self._closing_in(content)
        return at is not None and self._may_be_a_word(content, at)

    def _opened(self, content: str) -> int:
        """Where what the opening mark at the beginning opens begins; 0 without one."""
        begin = len(content) - len(content.lstrip())
        return begin + len(self.opening) if content.startswith(self.opening, begin) else 0

    def _closing_in(self, content: Any) -> int | None:
        """Where the mark stands that may close reasoning; None where text stands before an opening one, or no mark."""
        if not isinstance(content, str) or self.closing not in content:
            return None
        begin = self._opened(content)
        at = content.find(self.closing, begin)
        return None if at < 0 or (not begin and 0 <= content.find(self.opening) <= at) else at

    def _may_be_a_word(self, content: str, at: int) -> bool:
        if self._opened(content):
            return False
        before = content[content.rfind("\n", 0, at) + 1 : at]
        after = content[at + len(self.closing) :].partition("\n")[0]
        return bool(before.strip() and after.strip()) and (before[-1].isspace() or before[-1] in _QUOTES)

    def inline_of(self, content: Any) -> Inline | None:
        """The parts of a content with reasoning at its beginning; None where there is none, or blank."""
        inline = self.apart(content)
        return inline if inline is not None and inline.reasoning else None

    def require_sure(self, chat: Chat) -> None:
        """Raise `RowFault` where it cannot be told whether an answer begins with reasoning."""
        for number, turn in enumerate(chat.messages):
            if turn["role"] == "assistant" and self.is_unsure(turn.get("content")):
                raise RowFault(
                    "unopened_reasoning",
                    f"turn {number} (assistant): {self.closing} stands amid a line and nothing opens it, so it may end"
                    f" reasoning or be a word; write {self.opening} in front of reasoning, or leave the turn as it is"
                    " with --reasoning auto",
                )

    def settled(self, chat: Chat) -> Chat:
        """A chat whose reasoning is said once. Raises `RowFault` where it is said twice, and differs."""
        return chat.with_messages([self._said_once(number, turn) for number, turn in enumerate(chat.messages)])

    def _said_once(self, number: int, turn: Message) -> Message:
        said = {key: turn[key].strip() for key in REASONING if isinstance(turn.get(key), str)}
        inline = self.inline_of(turn.get("content")) if turn["role"] == "assistant" and said else None
        told = said if inline is None else said | {"content": inline.reasoning}
        if len(set(told.values())) > 1:
            raise RowFault(
                "contradictory_marks",
                f"turn {number} ({turn['role']}): {listed(told, 'and')} have reasoning that differs",
            )
        return turn if inline is None else {key: value for key, value in turn.items() if key not in REASONING}

    def without_reasoning(self, turn: Message) -> Message:
        """A turn without its reasoning, under any name and inline."""
        kept = {key: value for key, value in turn.items() if key not in REASONING}
        inline = self.apart(kept.get("content"))
        return kept if inline is None else kept | {"content": inline.answer}

    def with_inline_reasoning(self, turn: Message) -> Message:
        """A turn with its reasoning in front of its content, in marks."""
        reasoning = reasoning_of(turn)
        if turn["role"] != "assistant" or reasoning is None:
            return turn
        rest = self.without_reasoning(turn)
        text = f"{self.opening}\n{reasoning.strip()}\n{self.closing}\n\n{rest.get('content') or ''}"
        return rest | {"content": text}

    def without_all_reasoning(self, chat: Chat) -> Chat:
        """A chat without reasoning. Raises `RowFault` for a turn that says nothing else."""
        messages = [self.without_reasoning(turn) if turn["role"] == "assistant" else turn for turn in chat.messages]
        for number, (turn, before) in enumerate(zip(messages, chat.messages, strict=True)):
            if turn != before and not str(turn.get("content") or "").strip() and not said_besides(turn):
                raise RowFault("empty_turn", f"turn {number} (assistant) is only reasoning, which is dropped")
        return chat.with_messages(messages)
