"""What a template does with small chats of stand-ins: how it opens a turn for the assistant, and how turns end."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from pipeline.tokenizing.chats.reasoning import ReasoningMarks
from pipeline.tokenizing.chats.template import ChatTemplate, TemplateRefusal
from pipeline.tokenizing.chats.turns.layout import (
    CALL_ID,
    STAND_IN,
    common,
    common_text,
    layout_of,
    stand_in,
    with_stand_ins,
)
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

UNTOLD = "does not tell where it begins"
CUTS = "cuts answers at"
CLOSES = "opens this turn with its reasoning closed"
"""Why a turn cannot be trained."""

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


@dataclass(frozen=True, slots=True)
class Before:
    """What stands before an assistant turn in a chat of stand-ins."""

    messages: list[Message]
    """The turns before it."""

    piece: str
    """What is written between the text before it and its first."""

    is_next: bool
    """Whether that text is the last turn's; a blank one stands in the piece."""

    is_first: bool
    """Whether there is no text before it."""


class Opener(NamedTuple):
    """The special token that begins a turn."""

    text: str

    led: str
    """With what stands in front of it, from where the turn before has ended."""


class Probes:
    """A template's answers, remembered."""

    def __init__(self, template: ChatTemplate, special_texts: re.Pattern[str]) -> None:
        self._template, self._special_texts = template, special_texts
        self._contexts: dict[str, Context] = {}
        self._ending_run = re.compile(rf"(?:\s*(?:{special_texts.pattern}))*\s*\Z")
        self.thinking = [{"enable_thinking": thinks} for thinks in (True, False) if template.reads("enable_thinking")]
        """What a template that can be told to think, or not to, may be told."""

        self._opens = template.reads("add_generation_prompt")
        self.wants_text = self._wants_text()
        """Whether arguments of calls have to be JSON as text."""

        self._calling = _calling("{}" if self.wants_text else {})

        self.endings = self._endings()
        """Special tokens that stand at the end of some turn."""

        self.user_opener = self._user_opener()
        """What begins a user turn after an answer; None where no special token does."""

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

    def begins(self, before: Before, context: Context, *, thinks: bool, has_tools: bool) -> tuple[int, int] | str:
        """How much of the piece before a turn's first text is not its own: as it is opened, and at the least.

        context: what stands before the turn; thinks: whether that text is reasoning. In words, what keeps it from
        being told.
        """
        piece = before.piece
        if not before.messages and not context.prompt:  # as templates refuse an empty chat
            context = self.context([_USER], has_tools=has_tools)
            if context.prompt:
                return _after_prompt(piece, context, thinks=thinks) or UNTOLD
        if not context.prompt:
            return self._after_header(before, context)
        if before.is_next:
            return (
                _after_opening(piece, context, thinks=thinks) or _after_prompt(piece, context, thinks=thinks) or UNTOLD
            )
        return _after_prompt(piece, context, thinks=thinks) or _after_opening(piece, context, thinks=thinks) or UNTOLD

    def _after_header(self, before: Before, context: Context) -> tuple[int, int] | str:
        """Where a turn begins that no prompt opens: at once if prompts open others, else where a plain answer would."""
        piece, opened, header = before.piece, context.opened, context.before_answer
        if header is None:
            return UNTOLD
        at = 0 if before.is_next or not opened else piece.rfind(opened)
        if self._opens and opened and at >= 0 and piece.startswith(opened, at):
            return at + len(opened), at + len(opened)  # the template opens turns, but leaves this one to the model
        if opened is not None and header.rstrip() == opened.rstrip() and header.startswith(opened):
            header = opened  # generation goes on from there, so that white space is the model's to write
        at = piece.rfind(header)
        if at >= 0 and not (before.is_next and piece[at + len(header) :].strip()):
            begin = at + len(header)
        elif before.is_first:
            begin = len(piece)
        elif not before.is_next:
            return UNTOLD
        else:
            begin = common(piece, header) or len(piece)
        return begin, begin

    def answers_inside(self, turn: Message) -> bool:
        """Whether the results of a turn's calls are written before the last of what it says itself."""
        if not turn.get("tool_calls"):
            return False
        caller = _renumbered(turn, 1)
        result = _RESULT | {"content": stand_in(2)}
        whole = self._rendered([_USER, caller, result], TOOLS)
        slots = [] if whole is None else layout_of(whole).slots
        return 2 in slots and 1 in slots[slots.index(2) :]

    def _make_context(self, messages: list[Message], tools: list[Any] | None) -> Context:
        opened = self._tail(messages, tools, generation_prompt=True)
        least = opened
        for kwargs in self.thinking if opened is not None else ():
            other = self._tail(messages, tools, generation_prompt=True, kwargs=kwargs)
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
        opener = self._specials(self._make_context([last_user], None).before_answer)[-1:]
        found.difference_update(set(opener).difference(self._specials(self._between)[:1]))
        for tools in (None, TOOLS):
            for chat in of_assistant:
                found.update(self._closing(self._tail(chat, tools)))
        return frozenset(found)

    @cached_property
    def _between(self) -> str:
        """What stands between an answer and the user's next words; empty where that cannot be told."""
        whole = self._rendered([_USER, _ANSWER, _USER], None)
        pieces = [] if whole is None else layout_of(whole).pieces
        return pieces[2] if len(pieces) > 3 else ""

    def _user_opener(self) -> Opener | None:
        specials = self._special_texts.finditer(self._between)
        match = next((one for one in specials if one[0] not in self.endings), None)
        if match is None:
            return None
        closed = self._tail([_USER, _ANSWER], None) or ""
        written = common_text(self._between, closed, self._special_texts).rstrip()
        return Opener(match[0], self._between[min(len(written), match.start()) : match.end()])

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
        kwargs: dict[str, bool] | None = None,
    ) -> str | None:
        """What stands after the last stand-in; None where the template refuses the chat or writes no stand-in."""
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


def _after_opening(piece: str, context: Context, *, thinks: bool) -> tuple[int, int] | str | None:
    """As `Probes.begins`, where a piece begins with what follows the turn before; None where it does not."""
    opened, closed = context.opened or "", context.closed or ""
    begin = common(piece, opened)
    rest = opened[begin:]
    if begin <= common(opened, closed) or rest[:1].isalnum():
        return None
    if thinks and rest.strip():
        return CLOSES
    return begin, min(begin, common(piece, context.opened_least or opened))


def _after_prompt(piece: str, context: Context, *, thinks: bool) -> tuple[int, int] | str | None:
    """As `_after_opening`, where the last generation prompt of a piece ends, or what a piece has of it."""
    opened, prompt = context.opened or "", context.prompt
    least = (context.opened_least or opened)[len(opened) - len(prompt) :]
    for header in (prompt, least, prompt.partition("<think>")[0], prompt.rstrip()):
        at = piece.rfind(header) if header else -1
        if at >= 0:
            if thinks and prompt[common(prompt, piece[at:]) :].strip():
                return CLOSES
            return at + len(header), at + min(len(header), len(least))
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
    if isinstance(last.get("content"), str) and not last["content"].strip():
        last = last | {"content": stand_in(0)}  # so that it can be told what is written after it
    if last["role"] == "tool":
        caller = next((turn for turn in reversed(before) if turn.get("tool_calls")), None)
        return [_USER, *([] if caller is None else [caller | {"tool_calls": caller["tool_calls"][:1]}]), last]
    return [last]
