"""One turn of a chat as people write it → the message that templates are given, and whether the data has it trained."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.base.words import listed

Message = dict[str, Any]
"""A turn as chat templates expect it."""

ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
"""What speakers are called as roles."""

_CALLERS = ("function_call", "tool_call")
"""Speakers that are the assistant calling a function; the text is the call."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""The keys under which templates look for reasoning; transformers copies them into one another."""

_MARKS = ("weight", "train", "training", "trainable", "loss", "loss_mask", "loss_weight")
"""Keys of a turn that say whether it is trained."""

TURN_KEYS = (*REASONING, *_MARKS, "tool_calls", "function_call", "function_calls", "tool_call_id", "name")
"""What a turn can have besides its role and content."""

_TEXT_PARTS = ("text", "input_text", "output_text")
_THINKING_PARTS = ("thinking", "reasoning")


@dataclass(frozen=True, slots=True)
class PartMarks:
    """What the data says of an assistant turn of whose parts some are trained."""

    parts: tuple[tuple[bool, str, bool], ...]
    """In order: whether it is thinking, its text, whether it is trained."""


Mark = bool | PartMarks | None
"""What the data says of a turn being trained; None where it says nothing."""


class RowFault(Exception):
    """A row that cannot be used. `reason` is what it is counted under."""

    def __init__(self, reason: str, detail: str, row: int | None = None) -> None:
        """row: of the file, where another is meant than the one that is read."""
        super().__init__(detail)
        self.reason, self.row = reason, row


@dataclass(frozen=True, kw_only=True)
class TurnReader:
    """How turns are written in a file."""

    role_key: str | None = None
    content_key: str | None = None
    speakers: Mapping[str, str] = field(default_factory=dict)
    """What the user calls a speaker -> role."""

    reasoning_marks: tuple[str, str] = ("<think>", "</think>")
    """Between which inline reasoning stands."""

    def message(self, turn: Mapping[str, Any], where: str) -> tuple[Message, Mark]:
        """A turn as templates expect it, and whether it says that it is trained. Raises `RowFault`."""
        if self._is_simple(turn):
            return dict(turn), None
        trained: Mark
        message, trained = self._named(turn, where)
        role = message["role"]
        content = message.get("content")
        if isinstance(content, list):
            content, trained = _joined(message, content, trained, f"{where} ({role})")
        elif isinstance(content, dict) and role == "tool":
            content = json.dumps(content, ensure_ascii=False)
        if content is not None:
            message["content"] = content
        if role == "assistant":
            message = _with_calls(message, f"{where} ({role})")
        for key in [key for key in REASONING if key in message]:
            if not isinstance(message[key], str):
                raise RowFault("not_text", f"{where} ({role}): its {key} is {kind_of(message[key])}; a text is needed")
            if not message[key].strip():
                del message[key]
        opening, closing = self.reasoning_marks
        says_more = role == "assistant" and bool(said_besides(message))
        if content is None:
            if not says_more:
                raise RowFault("null_content", f"{where} ({role}): its content is null or missing")
        elif not isinstance(content, str):
            raise RowFault("not_text", f"{where} ({role}): its content is {kind_of(content)}; a text is needed")
        elif role in ("user", "assistant") and not says_more and not content.strip():
            raise RowFault("empty_turn", f"{where} ({role}): it is empty")
        elif role == "assistant" and content.lstrip().startswith(opening) and closing not in content:
            raise RowFault(
                "unclosed_reasoning", f"{where} ({role}): its reasoning begins with {opening} and does not end"
            )
        if trained and role != "assistant":
            raise RowFault(
                "contradictory_marks", f"{where} ({role}): it is marked as trained; only the assistant can be"
            )
        return message, trained

    def _is_simple(self, turn: Mapping[str, Any]) -> bool:
        """Whether it is a role and a text, so that nothing is to be done."""
        role, content = turn.get("role"), turn.get("content")
        return (
            len(turn) == 2
            and isinstance(role, str)
            and isinstance(content, str)
            and role not in _CALLERS
            and not (self.role_key or self.content_key or self.speakers)
            and not (content.isspace() or not content)
            and self.reasoning_marks[0] not in content
        )

    def _named(self, turn: Mapping[str, Any], where: str) -> tuple[Message, bool | None]:
        """The turn with role and content under these names, without nulls and marks."""
        message = {key: value for key, value in turn.items() if value is not None}  # as transformers does
        is_from = self.role_key is None and "from" in turn and "role" not in turn
        role_key = self.role_key or ("from" if is_from else "role")
        content_key = self.content_key or ("value" if is_from else "content")
        speaker, content = message.pop(role_key, None), message.pop(content_key, None)
        trained = _is_trained({key: message.pop(key) for key in _MARKS if key in message}, where)
        if not isinstance(speaker, str) and not is_from:
            raise RowFault(
                "unknown_role",
                f"{where}: it has no role (its keys are: {', '.join(map(str, turn)) or 'none'}); name who speaks with"
                " --keys, as in --keys role=speaker,content=text",
            )
        speaker = speaker if isinstance(speaker, str) else repr(speaker)
        role = self.speakers.get(speaker)
        if role is None and is_from:
            role = ROLES.get(speaker.lower()) or (speaker.lower() if speaker.lower() in _CALLERS else None)
            if role is None:
                known = ", ".join((*ROLES, *_CALLERS))
                raise RowFault(
                    "unknown_role",
                    f"{where}: from {speaker!r} is not known (known: {known}); name it with --roles, as in"
                    f" --roles user={speaker}",
                )
        role = role or speaker
        named: Message = {"role": role}
        if role in _CALLERS:
            named = {"role": "assistant", "tool_calls": _calls_of_text(content, where)}
            content = ""
        if content is not None:
            named["content"] = content
        return named | message, trained


def said_besides(turn: Message) -> list[str]:
    """What an assistant turn says besides its content: reasoning, and the names of functions called."""
    said = [turn[key] for key in REASONING if isinstance(turn.get(key), str) and turn[key].strip()]
    if isinstance(turn.get("function_calls"), str) and turn["function_calls"].strip():
        said.append(turn["function_calls"])
    said += [str(name_of(call) or call) for call in calls_of(turn)]
    return said


def calls_of(turn: Message) -> list[Any]:
    """The tool calls of a message."""
    calls = turn.get("tool_calls")
    return calls if isinstance(calls, list) else []


def function_of(call: Any) -> dict[str, Any]:
    """The part of a call that has name and arguments."""
    function = call.get("function", call) if isinstance(call, dict) else {}
    return function if isinstance(function, dict) else {}


def name_of(call: Any) -> str | None:
    """The name of the function that a call calls."""
    name = function_of(call).get("name")
    return name if isinstance(name, str) else None


def reasoning_of(turn: Message) -> str | None:
    """The reasoning that stands under a key of a turn."""
    return next((turn[key] for key in REASONING if isinstance(turn.get(key), str)), None)


def parsed(value: Any) -> Any:
    """What a text column holds as JSON; the value itself where it holds none."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def kind_of(value: Any) -> str:
    """What a value of JSON is called."""
    kinds = {list: "a list", dict: "an object", str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else kinds.get(type(value), type(value).__name__)


def _is_trained(marks: Mapping[str, Any], where: str) -> bool | None:
    """What the marks of a turn say; None where there is none. Raises `RowFault` for other values and contradictions."""
    said: dict[str, bool] = {}
    for key, value in marks.items():
        number = parsed(value.lower()) if isinstance(value, str) else value
        if not isinstance(number, bool | int | float) or not math.isfinite(number) or number not in (0, 1):
            raise RowFault(
                "unknown_weight",
                f"{where}: {key} {value!r} is neither 0 nor 1, and other weights are not supported yet",
            )
        said[key] = bool(number)
    if len(set(said.values())) > 1:
        raise RowFault("contradictory_marks", f"{where}: {listed(said, 'and')} contradict each other")
    return next(iter(said.values()), None)


def _joined(message: Message, parts: list[Any], whole: bool | None, where: str) -> tuple[str, Mark]:
    """A content given in parts, as one text; thinking goes to its own key. Raises `RowFault`.

    whole: what the turn itself says of being trained; returns what it says with its parts.
    """
    told: list[tuple[bool, str, bool | None]] = []  # whether it is thinking, its text, whether it is trained
    for number, part in enumerate(parts):
        if isinstance(part, str):
            told.append((False, part, None))
            continue
        if not isinstance(part, dict):
            raise RowFault("not_text", f"{where}: part {number} is {kind_of(part)}; a text is needed")
        marks = {key: part[key] for key in _MARKS if part.get(key) is not None}
        trained = _is_trained(marks, f"{where}: part {number}")
        type_ = part.get("type", "text")
        keys = (type_, "thinking", "text") if type_ in _THINKING_PARTS else ("text", "value", "content")
        text = next((part[key] for key in keys if isinstance(part.get(key), str)), None)
        if text is None or type_ not in (*_TEXT_PARTS, *_THINKING_PARTS):
            raise RowFault(
                "not_text", f"{where}: part {number} is of type {type_}; only text and thinking can be tokenised"
            )
        told.append((type_ in _THINKING_PARTS, text, trained))
    thoughts = [text for is_thought, text, _ in told if is_thought]
    if thoughts:
        if reasoning_of(message) is not None:
            raise RowFault("contradictory_marks", f"{where}: it has reasoning in its parts and under a key")
        message["reasoning_content"] = "".join(thoughts)
    content = "".join(text for is_thought, text, _ in told if not is_thought)
    return content, _mark_of(told, whole, message["role"], where)


def _mark_of(told: list[tuple[bool, str, bool | None]], whole: bool | None, role: str, where: str) -> Mark:
    """What a turn says of being trained, with its parts. Raises `RowFault` where these contradict the turn."""
    said = {trained for _, text, trained in told if text.strip()}
    if not said - {None}:
        return whole
    if (whole is False and True in said) or (whole is True and said == {False}):
        raise RowFault("contradictory_marks", f"{where}: the marks of its parts contradict its own")
    others = whole is not False and role == "assistant"
    parts = [(is_thought, text, others if mark is None else mark) for is_thought, text, mark in told]
    trained = {mark for _, text, mark in parts if text.strip()}
    return PartMarks(tuple(parts)) if len(trained) > 1 else trained.pop()


def _with_calls(message: Message, where: str) -> Message:
    """The message with its calls under `tool_calls`, and their arguments as objects where they are text of one."""
    if isinstance(message.get("function_call"), dict):
        message = {key: value for key, value in message.items() if key != "function_call"} | {
            "tool_calls": [*calls_of(message), {"type": "function", "function": message["function_call"]}]
        }
    calls = message.get("tool_calls")
    if isinstance(calls, str):
        calls = _calls_of_text(calls, where)
    if calls is None:
        return message
    if not isinstance(calls, list):
        raise RowFault("not_text", f"{where}: tool_calls is {kind_of(calls)}; a list of calls is needed")
    return message | {"tool_calls": [_call(call, where) for call in calls]}


def with_text_arguments(message: Message) -> Message:
    """A message whose calls have their arguments as JSON text."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in calls_of(message):
        function = function_of(call)
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append(call | {"function": function | {"arguments": text}})
    return message | {"tool_calls": calls}


def _call(call: Any, where: str) -> Any:
    function = function_of(call)
    if not function.get("name"):
        raise RowFault("not_text", f"{where}: a tool call has no name")
    arguments = function.get("arguments", function.get("parameters"))
    is_blank = arguments is None or (isinstance(arguments, str) and not arguments.strip())
    decoded = {} if is_blank else parsed(arguments)
    if isinstance(decoded, dict):
        arguments = decoded
    rest = {key: value for key, value in function.items() if key not in ("parameters", "type", "id")}
    rest["arguments"] = arguments
    outer = {key: call[key] for key in ("id", "type") if call.get(key) is not None}
    return {"type": "function"} | outer | {"function": rest}


def _calls_of_text(text: Any, where: str) -> list[Any]:
    """The calls of a turn whose text is a call, or a list of them, as JSON. Raises `RowFault`."""
    value = parsed(text)
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) and function_of(call).get("name") for call in calls):
        raise RowFault("not_text", f"{where}: its text is no tool call (JSON with name and arguments)")
    return [_call(call, where) for call in calls]
