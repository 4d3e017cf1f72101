"""Special tokens in the words of a chat, hidden from its template."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.tokenizing.chats.reasoning import ReasoningMarks
from pipeline.tokenizing.chats.template import ChatTemplate
from pipeline.tokenizing.rows.messages import RowFault
from pipeline.tokenizing.rows.samples import Chat
from pipeline.tokenizing.tokens.own_words import HIDDEN, OwnWords


def looked_at(chat: Chat, words: OwnWords, marks: ReasoningMarks, notes: list[str]) -> Chat:
    """The chat, special tokens in its words hidden where they are to be plain text. Raises `RowFault`.

    Marks of inline reasoning are nobody's words, though they may be special tokens.
    """
    roles = marks.plain_roles(chat)
    if roles is not None and words.are_plain((*roles, *(turn["content"] for turn in chat.messages))):
        return chat
    apart = {
        number: inline
        for number, turn in enumerate(chat.messages)
        if turn["role"] == "assistant" and (inline := marks.apart(turn.get("content")))
    }
    said: list[Any] = [
        turn if (inline := apart.get(number)) is None else turn | {"content": [inline.reasoning, inline.answer]}
        for number, turn in enumerate(chat.messages)
    ]
    messages, tools = words.look((said, chat.tools), notes)
    if HIDDEN not in notes:
        return chat
    for number, inline in apart.items():
        reasoning, answer = messages[number]["content"]
        messages[number]["content"] = f"{inline.before}{reasoning}{inline.between}{answer}"
    return replace(chat, messages=messages, tools=tools)


def require_same(chat: Chat, text: str, words: OwnWords, template: ChatTemplate) -> None:
    """Raise `RowFault` if the template writes a chat otherwise because something is hidden in it."""
    messages, tools = words.shown((chat.messages, chat.tools))
    if template.render(messages, tools) != words.shown(text):
        raise RowFault(
            "special_in_text",
            f"special tokens stand in the chat's own words, and {template.name} changes them, so they cannot be told"
            " from its own",
        )
