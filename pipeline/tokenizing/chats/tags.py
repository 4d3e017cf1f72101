"""Tags that people write into texts: calls and results as Hermes has them, reasoning in whatever marks.

A text is written as it stands. So tags stand there twice where the template writes them itself, and stand there in a
strange form where it writes others; the first is mended, and all of it is said.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cached_property
from typing import Any

from pipeline.format.options import TokenizeOptions
from pipeline.tokenizing.chats.reasoning import ReasoningMarks
from pipeline.tokenizing.chats.template import ChatTemplate, TemplateRefusal
from pipeline.tokenizing.chats.turns.layout import CALL_ID
from pipeline.tokenizing.chats.turns.probes import TOOLS
from pipeline.tokenizing.rows.messages import REASONING, TOOL_ROLES, Message
from pipeline.tokenizing.rows.samples import Chat

_CALL = "<tool_call>"
_RESULT = re.compile(r"\s*<tool_response>\n?(.*?)\n?</tool_response>\s*", re.DOTALL)
_CLOSING_OF = {f"<{name}>": f"</{name}>" for name in ("think", "thinking", "thought", "reasoning", "reason")} | {
    "<scratchpad>": "</scratchpad>",
    "<seed:think>": "</seed:think>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "[THINK]": "[/THINK]",
}
"""Marks of reasoning that models and data sets are known to have, the opening one -> the closing one."""

_OPENING = re.compile(rf"\s*({'|'.join(map(re.escape, _CLOSING_OF))})")
_ASKED, _SAID = "Which one is it?", "So it is this."


class OwnTags:
    """What one template does with texts that have tags."""

    def __init__(self, template: ChatTemplate, options: TokenizeOptions) -> None:
        self._template = template.of_any_day()
        self._marks = ReasoningMarks(*options.reasoning_marks.split(","))
        self._closing = self._marks.closing
        self._drops_reasoning = options.reasoning == "drop"
        self._masks_calls = options.tool_calls == "mask"

    def settled(self, chat: Chat) -> Chat:
        """A chat without the tags that the template writes itself, and with notes of those that it does not."""
        notes: list[str] = []
        messages = chat.messages
        for number, turn in enumerate(chat.messages):
            role, content = turn["role"], turn.get("content")
            if role == "user" or not isinstance(content, str):
                continue
            if role == "assistant":
                if "<" in content or "[/" in content or self._closing in content:  # most texts have none of them
                    self._look(turn, content, notes)
            elif role in TOOL_ROLES and "<tool_response>" in content and self._wraps_results:
                inside = _RESULT.fullmatch(content)
                if inside is not None:
                    messages = [*messages[:number], turn | {"content": inside[1]}, *messages[number + 1 :]]
                    notes.append("result_tags")
            elif role == "system" and chat.tools and "<tools>" in content:
                notes.append("tools_twice")
        if not notes:
            return chat
        return replace(chat, messages=messages, notes=list(dict.fromkeys((*chat.notes, *notes))))

    def _look(self, turn: Message, content: str, notes: list[str]) -> None:
        """Note what tags the text of an assistant turn has that the template does not expect there."""
        if _CALL in content and "</tool_call>" in content:
            if turn.get("tool_calls"):
                notes.append("calls_twice")
            elif self._masks_calls or not self._writes_calls:
                notes.append("calls_as_text")
        opening = _OPENING.match(content)
        if self._closing in content and self._marks.inline_of(content) is not None:
            if not self._drops_reasoning and self._has_other_marks:
                notes.append("reasoning_as_text")
        elif opening and _CLOSING_OF[opening[1]] in content:
            notes.append("reasoning_unread")

    @cached_property
    def _wraps_results(self) -> bool:
        return re.search(rf"<tool_response>\s*{re.escape(_SAID)}", self._calling) is not None

    @cached_property
    def _writes_calls(self) -> bool:
        """Whether the template writes calls as Hermes does."""
        return re.search(rf"{_CALL}\s*\{{\s*\"name\"", self._calling.partition(_ASKED)[2]) is not None

    @cached_property
    def _has_other_marks(self) -> bool:
        """Whether the template has a place for reasoning, and other marks round it."""
        thinking: Message = {"role": "assistant", "content": "This one."} | dict.fromkeys(REASONING, _SAID)
        before, said, _ = self._written([thinking]).partition(_ASKED)[2].partition(_SAID)
        return bool(said) and self._marks.opening not in before

    @cached_property
    def _calling(self) -> str:
        """A call and its result, as the template writes them; nothing where it refuses them."""
        for arguments in ({"a": "b"}, '{"a": "b"}'):
            function: dict[str, Any] = {"name": TOOLS[0]["function"]["name"], "arguments": arguments}
            call = {"id": CALL_ID, "type": "function", "function": function}
            result = {"role": "tool", "content": _SAID, "name": function["name"], "tool_call_id": CALL_ID}
            written = self._written([{"role": "assistant", "content": "", "tool_calls": [call]}, result], TOOLS)
            if written:
                return written
        return ""

    def _written(self, turns: list[Message], tools: list[Any] | None = None) -> str:
        try:
            return self._template.render([{"role": "user", "content": _ASKED}, *turns], tools)
        except TemplateRefusal:
            return ""
