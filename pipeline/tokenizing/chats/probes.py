"""What a template does with small chats of stand-ins: how it opens a turn for the assistant, and how turns end."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.tokenizing.chats.layout import CALL_ID, STAND_IN, common, layout_of, stand_in, with_stand_ins
from pipeline.tokenizing.chats.reasoning import ReasoningMarks
from pipeline.tokenizing.chats.template import ChatTemplate, TemplateRefusal
from pipeline.tokenizing.rows.messages import REASONING, Message

_TOOL_NAME = "look_up_the_weather"
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": _TOOL_NAME,
            "description": "d",
            "parameters": {"type": "object", "properties": {"a": {"type": "string", "description": "e"}}},
        },
    }
]
"""Tools for chats of stand-ins."""

_USER: Message = {"role": "user", "content": stand_in(0)}
_ANSWER: Message = {"role": "assistant", "content": stand_in(1)}
_RESULT: Message = {"role": "tool", "content": stand_in(0), "name": stand_in(0), "tool_call_id": CALL_ID}


def _calling(arguments: dict[str, Any] | str) -> Message:
    function = {"name": stand_in(0), "arguments": arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": CALL_ID, "type": "function", "function": function}],
    }


@dataclass(frozen=True, slots=True)
class Context:
    """What a template writes after the last text of a chat, before an assistant turn."""

    closed: str | None
    """Without a generation prompt; None where the chat is refused."""

    opened: str | None
    """With a generation prompt."""

    opened_least: str | None
    """What the generation prompts with and without thinking have in common."""

    before_answer: str | None
    """Up to the text of a plain answer."""

    @property
    def prompt(self) -> str:
        """The generation prompt; empty where the template has none."""
        if self.opened is None or self.closed is None:
            return ""
        return self.opened[common(self.opened, self.closed) :]


class Probes:
    """A template's answers, remembered."""

    def __init__(self, template: ChatTemplate, special_texts: re.Pattern[str]) -> None:
        self._template, self._special_texts = template, special_texts
        self._contexts: dict[str, Context] = {}
        self._ending_run = re.compile(rf"(?:\s*(?:{special_texts.pattern}))*\s*\Z")
        self._thinks = template.reads("enable_thinking")
        self.wants_text = self._wants_text()
        """Whether arguments of calls have to be JSON as text."""

        self._calling = _calling("{}" if self.wants_text else {})

        self.endings = self._endings()
        """Special tokens that stand at the end of some turn."""

        self.user_opener = self._user_opener()
        """The special token that begins a user turn after an answer; None where there is none."""

        self.writes_tools = self._writes_tools()
        self._has_reasoning = {has_calls: self._writes_reasoning(has_calls=has_calls) for has_calls in (False, True)}

    def context(self, before: Sequence[Message], *, has_tools: bool) -> Context:
        """What stands before an assistant turn. before: the turns before it, with stand-ins."""
        last = with_stand_ins(_last_of(before), ReasoningMarks(), is_shape=True)[0]
        messages = [_renumbered(turn, int(number == len(last) - 1)) for number, turn in enumerate(last)]
        key = f"{has_tools}{messages}"
        if key not in self._contexts:
            self._contexts[key] = self._make_context(messages, TOOLS if has_tools else None)
        return self._contexts[key]

    def _make_context(self, messages: list[Message], tools: list[Any] | None) -> Context:
        opened = self._tail(messages, tools, generation_prompt=True)
        least = opened
        if self._thinks and opened is not None:
            others = [self._tail(messages, tools, generation_prompt=True, thinks=thinks) for thinks in (True, False)]
            for other in others:
                least = least if other is None or least is None else least[: common(least, other)]
        whole = self._rendered([*messages, _ANSWER | {"content": stand_in(2)}], tools)
        pieces = [] if whole is None or stand_in(2) not in whole else layout_of(whole).pieces
        return Context(
            closed=self._tail(messages, tools),
            opened=opened,
            opened_least=least,
            before_answer=pieces[-2] if len(pieces) > 1 else None,
        )

    def _endings(self) -> frozenset[str]:
        last_user = _USER | {"content": stand_in(1)}
        calling = self._calling
        call = [_USER, _renumbered(calling, 1)]
        result = _renumbered(_RESULT, 1)
        of_assistant = ([_USER, _ANSWER], call, [_USER, _ANSWER | {"reasoning_content": stand_in(0)}])
        of_others = (
            [last_user],
            [{"role": "system", "content": stand_in(0)}, last_user],
            [_USER, calling, result],
            [_USER, calling, result | {"role": "function"}],
        )
        found: set[str] = set()
        for tools in (None, TOOLS):
            for chat in of_others:
                found.update(self._closing(self._tail(chat, tools)))
        found.difference_update(self._specials(self._make_context([last_user], None).before_answer)[-1:])
        for tools in (None, TOOLS):
            for chat in of_assistant:
                found.update(self._closing(self._tail(chat, tools)))
        return frozenset(found)

    def _user_opener(self) -> str | None:
        whole = self._rendered([_USER, _ANSWER, _USER], None)
        pieces = [] if whole is None else layout_of(whole).pieces
        between = self._specials(pieces[2]) if len(pieces) > 3 else []
        return next((text for text in between if text not in self.endings), None)

    def _writes_tools(self) -> bool:
        with_tools = self._rendered([_USER], TOOLS)
        return with_tools is None or _TOOL_NAME in with_tools

    def has_reasoning(self, turn: Message) -> bool:
        """Whether the template has a place for the reasoning of such a turn, with calls or without."""
        return self._has_reasoning[bool(turn.get("tool_calls"))]

    def _writes_reasoning(self, *, has_calls: bool) -> bool:
        turn = self._calling if has_calls else _ANSWER
        whole = self._rendered([_USER, turn | dict.fromkeys(REASONING, stand_in(2))], TOOLS if has_calls else None)
        return whole is not None and stand_in(2) in whole

    @cached_property
    def takes_inline(self) -> bool:
        """Whether the template writes reasoning that stands in front of a content."""
        whole = self._rendered(
            [_USER, _ANSWER | {"content": f"<think>\n{stand_in(2)}\n</think>\n\n{stand_in(1)}"}], None
        )
        return whole is not None and stand_in(2) in whole

    def _wants_text(self) -> bool:
        written = self._rendered([_USER, _calling({"city": "Oslo"})], TOOLS)
        as_text = self._rendered([_USER, _calling('{"city": "Oslo"}')], TOOLS)
        return as_text is not None and (written is None or "'city': 'Oslo'" in written)

    def closing_from(self, text: str) -> int:
        """Where the special tokens begin with which a text ends."""
        match = self._ending_run.search(text)
        return len(text) if match is None else match.start()

    def _closing(self, tail: str | None) -> list[str]:
        return [] if tail is None else self._specials(tail[self.closing_from(tail) :])

    def _specials(self, text: str | None) -> list[str]:
        return [] if text is None else self._special_texts.findall(text)

    def _tail(
        self,
        messages: Sequence[Message],
        tools: list[Any] | None,
        *,
        generation_prompt: bool = False,
        thinks: bool | None = None,
    ) -> str | None:
        """What stands after the last stand-in; None where the template refuses the chat or writes no stand-in."""
        kwargs = None if thinks is None else {"enable_thinking": thinks}
        rendered = self._rendered(messages, tools, generation_prompt=generation_prompt, kwargs=kwargs)
        if rendered is None:
            return None
        *_, last = re.split(STAND_IN, rendered)
        return last if not messages or rendered.endswith(stand_in(1) + last) else None

    def _rendered(self, messages: Sequence[Message], tools: list[Any] | None, **options: Any) -> str | None:
        try:
            return self._template.render(messages, tools, **options)
        except TemplateRefusal:
            return None


def _renumbered(turn: Message, number: int) -> Message:
    """A turn whose stand-ins are all the same."""
    told: Message = json.loads(STAND_IN.sub(stand_in(number), json.dumps(turn, ensure_ascii=False)))
    return told


def _last_of(before: Sequence[Message]) -> list[Message]:
    """The last turn, with what templates want to see before it."""
    if not before:
        return []
    last = before[-1]
    if last["role"] == "assistant":
        return [_USER, last]
    if last["role"] == "tool":
        caller = next((turn for turn in reversed(before) if turn.get("tool_calls")), None)
        return [_USER, *([] if caller is None else [caller | {"tool_calls": caller["tool_calls"][:1]}]), last]
    return [last]
