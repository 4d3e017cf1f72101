"""A turn of a chat as templates are given it: what it says, and the calls that people write in many ways."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
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

RESULTS = ("function", "observation", "tool_response", "function_response", "ipython")
"""What the role `tool` is called otherwise; some templates know one of these."""

TOOL_ROLES = ("tool", *RESULTS)
"""The roles of turns that are results of calls."""

CALLERS = ("function_call", "tool_call")
"""Speakers that are the assistant calling a function; the text is the call."""

_SPEAKER_KEYS = ("role", "from", "speaker", "author", "sender", "who", "user_type", "type", "name", "participant")
"""What the key of who speaks is called."""

_OTHER_ROLES = ("developer", *TOOL_ROLES, *CALLERS)

REASONING = ("reasoning_content", "reasoning", "thinking")
"""The keys under which templates look for reasoning; transformers copies them into one another."""

MARKS = ("weight", "train", "training", "trainable", "loss", "loss_mask", "loss_weight", "masked")
"""Keys of a turn that say whether it is trained; `masked` says that it is not."""

TURN_KEYS = (
    *(*REASONING, *MARKS, "train_detail"),
    *("tool_calls", "function_call", "function_calls", "tool_call_id", "name"),
)
"""What a turn can have besides its role and content."""

EMPTY: tuple[Any, ...] = (None, "", [], {})
"""What says nothing."""

_TAGGED = re.compile(r"\s*<tool_call>(.*?)</tool_call>\s*", re.DOTALL)
_CALLS = ("tool_calls", "function_calls", "function_call")
_ARGUMENTS = ("arguments", "parameters", "input", "args")
_OF_CALLS = ("name", "id", "type", "index", "function", "description", "strict")
"""The keys of calls: where their arguments stand, and what is besides."""


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


def who_is(speakers: Iterable[str]) -> str:
    """What is said of a chat without an assistant who is only called otherwise; nothing of others."""
    roles = roles_named(speakers)
    return f"; --roles {roles} says who they are" if "assistant=" in roles else ""


def roles_named(speakers: Iterable[str]) -> str:
    """The roles of speakers who are called otherwise, as `--roles` has them.

    Of names that are not known the first is the user's, unless someone else's is, and the next the assistant's.
    """
    roles = {speaker: ROLES.get(speaker.lower()) for speaker in speakers}
    unknown = [speaker for speaker, role in roles.items() if role is None and speaker not in _OTHER_ROLES]
    missing = [role for role in ("user", "assistant") if role not in roles.values()]
    roles |= dict(zip(unknown, missing, strict=False))
    named: dict[str, str] = {}
    for speaker, role in roles.items():
        if role is not None and role != speaker:
            named[role] = f"{named[role]}|{speaker}" if role in named else speaker
    return ",".join(f"{role}={names}" for role, names in named.items())


def is_named(turn: Message) -> bool:
    """Whether a turn has the usual keys of who speaks and of what is said."""
    return ("content" in turn and ("role" in turn or "from" in turn)) or ("from" in turn and "value" in turn)


def keys_of_turns(turns: list[Any]) -> str | None:
    """The flags under which objects with other keys are turns: every one says who speaks, and has a text or parts.

    Who speaks stands under a key of which every value is a known speaker, or that is called like one.
    """
    if not turns or not all(isinstance(turn, dict) for turn in turns):
        return None
    texts = {key: [turn[key] for turn in turns] for key in turns[0] if all(turn.get(key) for turn in turns)}
    speakers_of = {key: told for key, told in texts.items() if all(isinstance(speaker, str) for speaker in told)}
    known = [key for key, told in speakers_of.items() if all(speaker.lower() in ROLES for speaker in told)]
    called = [key for key in speakers_of if key.lower() in _SPEAKER_KEYS and len({*speakers_of[key]}) <= len(ROLES)]
    for role_key in (*known, *called):
        contents = [key for key, told in texts.items() if key != role_key and all(map(_is_content, told))]
        if contents:
            content_key = max(contents, key=lambda key: sum(map(len, texts[key])))
            keys = {"role": role_key, "content": content_key}
            named = ",".join(f"{name}={key}" for name, key in keys.items() if name != key)
            roles = roles_named(speakers_of[role_key])
            return f"--keys {named}" + (f" --roles {roles}" if roles else "")
    return None


def _is_content(value: Any) -> bool:
    """Whether a value is a text, or a list of parts with text."""
    if isinstance(value, list):
        return all(isinstance(part, str) or (isinstance(part, dict) and "text" in part) for part in value)
    return isinstance(value, str)


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


def functions_in(tools: Any, where: str) -> list[dict[str, Any]]:
    """Tools as OpenAI's format has them, from a list, a single one, or JSON text of either; some data has the functions
    alone. Raises `RowFault`.
    """
    try:
        tools = json.loads(tools) if isinstance(tools, str) else tools
        tools = [tools] if isinstance(tools, dict) and ("function" in tools or "name" in tools) else tools
        found = [json.loads(tool) if isinstance(tool, str) else tool for tool in tools]
    except (ValueError, TypeError, RecursionError):
        found = [None]
    if not all(isinstance(tool, dict) for tool in found):
        raise RowFault("not_text", f"{where} is no list of tool descriptions (JSON schemas)")
    return [
        {"type": "function", "function": {key: one for key, one in tool.items() if (key, one) != ("type", "function")}}
        if "name" in tool and "function" not in tool
        else tool
        for tool in found
    ]


def with_schema(tool: dict[str, Any]) -> dict[str, Any]:
    """A function whose parameters are a JSON schema, where they were named alone, as xLAM does."""
    function = function_of(tool)
    named = function.get("parameters")
    if not isinstance(named, dict) or "properties" in named or not all(isinstance(one, dict) for one in named.values()):
        return tool
    return tool | {"function": function | {"parameters": {"type": "object", "properties": named}}}


def has_free_arguments(message: Message) -> bool:
    """Whether a call of a message has arguments that are no object, such as plain text."""
    return any(not isinstance(function_of(call).get("arguments"), dict) for call in calls_of(message))


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


def is_blank(value: Any) -> bool:
    """Whether a value, or JSON text of one, says nothing."""
    return (isinstance(value, str) and not value.strip()) or parsed(value) in EMPTY


def with_calls(message: Message, where: str) -> Message:
    """A message with its calls under `tool_calls`, their arguments objects where they are text of one; none is no key.

    Raises `RowFault` for calls that cannot be read, that contradict each other, and of others than the assistant.
    """
    there = [key for key in _CALLS if key in message]
    if not there:
        return message
    rest = {key: value for key, value in message.items() if key not in there}
    told: dict[str, list[Any]] = {}
    for key in there:
        value = message[key]
        if is_blank(value):
            continue
        if key == "function_calls" and isinstance(value, str):  # which templates write as it stands
            rest[key] = value
            continue
        if message["role"] != "assistant":
            raise RowFault("misplaced_calls", f"{where}: it has {key}; only the assistant can call functions")
        told[key] = calls_in(value, where, f"its {key}")
    if not told:
        return rest
    calls = next(iter(told.values()))
    if any([function_of(call) for call in other] != [function_of(call) for call in calls] for other in told.values()):
        raise RowFault("contradictory_marks", f"{where}: {listed(told, 'and')} have calls that differ")
    return rest | {"tool_calls": calls}


def calls_in(value: Any, where: str, what: str) -> list[Any]:
    """A call, a list of calls, or JSON text of one, as calls of a message. Raises `RowFault`, with `what` it was.

    A text may also have each call in tags, as Hermes does.
    """
    tagged = _TAGGED.findall(value) if isinstance(value, str) and not _TAGGED.sub("", value) else []
    value = [parsed(call) for call in tagged] or parsed(value)
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) for call in calls):
        raise RowFault("not_text", f"{where}: {what} is no tool call (JSON with name and arguments)")
    return [_call(call, where) for call in calls]


def _call(call: dict[str, Any], where: str) -> dict[str, Any]:
    function = function_of(call)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise RowFault("not_text", f"{where}: a tool call has no name (its keys are: {', '.join(call) or 'none'})")
    both = {key: value for key, value in (call | function).items() if value is not None}
    told = {key: both[key] for key in _ARGUMENTS if not is_blank(both.get(key))}
    others = [key for key, value in both.items() if key not in (*_OF_CALLS, *_ARGUMENTS) and not is_blank(value)]
    if others and not any(key in both for key in _ARGUMENTS):
        raise RowFault(
            "not_text",
            f"{where}: the call of {name} has {listed(others, 'and')} and no arguments; write them under arguments",
        )
    decoded = [parsed(parsed(value)) for value in told.values()]  # some data has JSON text of JSON text
    if any(value != decoded[0] for value in decoded):
        raise RowFault("contradictory_marks", f"{where}: {listed(told, 'and')} of the call of {name} differ")
    arguments: Any = next(iter(told.values()), {})
    if decoded and isinstance(decoded[0], str) and decoded[0].lstrip().startswith("{"):
        raise RowFault(
            "bad_arguments",
            f"{where}: the arguments of the call of {name} begin as an object and are no JSON"
            f" ({decoded[0].strip()[:40]!r}); write them as an object, or as JSON text of one",
        )
    rest = {key: value for key, value in function.items() if key not in (*_ARGUMENTS, "type", "id")}
    rest["arguments"] = decoded[0] if decoded and isinstance(decoded[0], dict) else arguments
    outer = {key: call[key] for key in ("id", "type") if call.get(key) is not None}
    if outer.get("type") in ("tool_use", "tool_call"):
        outer["type"] = "function"
    return {"type": "function"} | outer | {"function": rest}
