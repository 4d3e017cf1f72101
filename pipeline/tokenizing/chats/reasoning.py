"""Reasoning of assistant turns, under a key or inline in front of the content in think marks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pipeline.tokenizing.rows.messages import REASONING, Message, RowFault, reasoning_of, said_besides
from pipeline.tokenizing.rows.samples import Chat

_INLINE = re.compile(r"(\s*<think>)?(\s*)(.*?)(\s*)</think>(\s*)(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inline:
    """A content that begins with reasoning in think marks, in its parts; put together they are the content."""

    before: str
    reasoning: str
    between: str
    answer: str


def inline_of(content: Any) -> Inline | None:
    """The parts of a content with reasoning in think marks at its beginning; None where there is none, or blank."""
    if not isinstance(content, str) or "</think>" not in content:
        return None
    match = _INLINE.fullmatch(content)
    if match is None or not match[3]:
        return None
    opened = (match[1] or "") + match[2]
    return Inline(before=opened, reasoning=match[3], between=f"{match[4]}</think>{match[5]}", answer=match[6])


def without_reasoning(turn: Message) -> Message:
    """A turn without its reasoning, under any name and inline."""
    kept = {key: value for key, value in turn.items() if key not in REASONING}
    content = kept.get("content")
    if isinstance(content, str) and "</think>" in content and (match := _INLINE.fullmatch(content)):
        kept["content"] = match[6]
    return kept


def with_inline_reasoning(turn: Message) -> Message:
    """A turn with its reasoning in front of its content, in think marks."""
    reasoning = reasoning_of(turn)
    if turn["role"] != "assistant" or reasoning is None or inline_of(turn.get("content")) is not None:
        return turn
    rest = without_reasoning(turn)
    return rest | {"content": f"<think>\n{reasoning.strip()}\n</think>\n\n{rest.get('content') or ''}"}


def without_all_reasoning(chat: Chat) -> Chat:
    """A chat without reasoning. Raises `RowFault` for a turn that says nothing else."""
    messages = [without_reasoning(turn) if turn["role"] == "assistant" else turn for turn in chat.messages]
    for number, (turn, before) in enumerate(zip(messages, chat.messages, strict=True)):
        if turn != before and not str(turn.get("content") or "").strip() and not said_besides(turn):
            raise RowFault("empty_turn", f"turn {number} (assistant) is only reasoning, which is dropped")
    return chat.with_messages(messages)
