"""What a raw row is: a chat, a pair or a text. Which columns say so, and what in a row is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.base.errors import DataError
from pipeline.tokenizing.chats.template import Message

_REQUIRED = {
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
    "text": ("text",),
}
_OPTIONAL = {
    "messages": ("system", "tools"),
    "prompt-completion": ("system", "tools"),
    "instruction": ("system", "input"),
    "text": (),
}
_ALIASES = {"messages": ("messages", "conversations")}

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
"""What the speakers of from/value turns are called as roles."""

_REASONING = ("reasoning_content", "reasoning", "thinking")


class RowFault(Exception):
    """A row that cannot be used. `reason` is what it is counted under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Chat:
    """Turns to be rendered by a chat template."""

    messages: list[Message]
    tools: list[Any] | None = None
    num_prompt: int = 0
    """Turns at the beginning that are prompt whoever speaks."""

    @property
    def is_plain(self) -> bool:
        """Whether it is nothing but roles and texts, so that only those decide how it is rendered."""
        return self.tools is None and all(
            len(turn) == 2 and isinstance(turn.get("content"), str) for turn in self.messages
        )


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and what is to follow it, end to end."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text, all of it trained."""

    text: str


Sample = Chat | Pair | Text


@dataclass(frozen=True, kw_only=True)
class Format:
    """How the rows of a file are read."""

    name: str
    columns: Mapping[str, str]
    """Field -> column, of the fields that are there."""

    @property
    def default_train_on(self) -> str:
        """Targets, unless the user says otherwise."""
        return {"messages": "assistant", "text": "all"}.get(self.name, "completion")

    def sample(self, row: Mapping[str, Any], *, as_chat: bool) -> Sample:
        """Read a row. as_chat: make pairs into chats of two turns. Raises `RowFault`."""
        if self.name == "text":
            return Text(self._text(row, "text"))
        if self.name == "messages":
            messages = self._system(row) + turns(self._value(row, "messages"), self.columns["messages"])
            return Chat(_one_system(messages), self._tools(row))
        if self.name == "instruction":
            parts = [self._text(row, "instruction"), self._optional_text(row, "input")]
            prompt, completion = "\n".join(part for part in parts if part), self._text(row, "output")
        else:
            prompt, completion = (self._value(row, name) for name in ("prompt", "completion"))
            if isinstance(prompt, list) or isinstance(completion, list):
                before = _one_system(self._system(row) + _as_turns(prompt, "user", self.columns["prompt"]))
                after = _as_turns(completion, "assistant", self.columns["completion"])
                return Chat(before + after, self._tools(row), num_prompt=len(before))
            prompt, completion = (self._text(row, name) for name in ("prompt", "completion"))
        if as_chat:
            pair = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            before = self._system(row)
            return Chat(before + pair, self._tools(row), num_prompt=len(before) + 1)
        if self.name == "instruction":
            prompt += "\n"
        return Pair(prompt, completion)

    def _value(self, row: Mapping[str, Any], name: str) -> Any:
        column = self.columns[name]
        value = row.get(column)
        if value is None:
            raise RowFault("null_content", f"column {column!r} is {'null' if column in row else 'missing'}")
        return value

    def _text(self, row: Mapping[str, Any], name: str) -> str:
        value = self._value(row, name)
        if not isinstance(value, str):
            raise RowFault("not_text", f"column {self.columns[name]!r} holds {_kind(value)}; a text is needed")
        if not value.strip() and name not in ("input", "system"):
            raise RowFault("empty_turn", f"column {self.columns[name]!r} is empty")
        return value

    def _optional_text(self, row: Mapping[str, Any], name: str) -> str:
        value = row.get(self.columns.get(name, ""))
        return "" if value is None else self._text(row, name)

    def _system(self, row: Mapping[str, Any]) -> list[Message]:
        """The system turn that a column of its own gives, if any."""
        content = self._optional_text(row, "system")
        return [{"role": "system", "content": content}] if content else []

    def _tools(self, row: Mapping[str, Any]) -> list[Any] | None:
        tools = row.get(self.columns.get("tools", ""))
        if not tools:
            return None
        try:
            tools = json.loads(tools) if isinstance(tools, str) else tools
            found = [json.loads(tool) if isinstance(tool, str) else tool for tool in tools]
        except (ValueError, TypeError):
            found = [None]
        if not all(isinstance(tool, dict) for tool in found):
            raise RowFault(
                "not_text", f"column {self.columns['tools']!r} is no list of tool descriptions (JSON schemas)"
            )
        return found or None


def choose_format(
    columns: Sequence[str], forced: str, mapped: Mapping[str, str], where: str, *, more_later: bool = False
) -> Format:
    """The format of a file by its columns.

    forced: a format's name, or auto; mapped: field -> column, from `--map`; more_later: whether rows may have columns
    that the first one lacks.
    Raises `DataError`, showing the columns and the choices, where none or several fit.
    """
    shown = ", ".join(columns) or "none"
    for name, column in mapped.items():
        if column not in columns:
            raise DataError(f"{where}: --map {name}={column}: no such column (the columns are: {shown})")
    names = [forced] if forced != "auto" else [n for n in _REQUIRED if {*mapped} <= {*_REQUIRED[n], *_OPTIONAL[n]}]
    fits = [n for n in names if all(_columns_of(field, columns, mapped) for field in _REQUIRED[n])]
    if "input_ids" in columns and not mapped and forced == "auto":
        raise DataError(
            f"{where}: there is a column 'input_ids', so it is tokenised already; pack it without --tokenizer"
        )
    if len(fits) != 1:
        raise DataError(f"{where}: {_misfit(fits, forced, columns, mapped)}")
    found = {}
    for field in (*_REQUIRED[fits[0]], *_OPTIONAL[fits[0]]):
        candidates = _columns_of(field, columns, mapped)
        if len(candidates) > 1:
            raise DataError(
                f"{where}: {' and '.join(map(repr, candidates))} could both be the {field};"
                f" choose one with --map {field}={candidates[0]}"
            )
        if candidates and columns.count(candidates[0]) > 1:
            raise DataError(f"{where}: there are {columns.count(candidates[0])} columns called {candidates[0]!r}")
        if candidates:
            found[field] = candidates[0]
        elif more_later:
            found[field] = field
    return Format(name=fits[0], columns=found)


def _columns_of(field: str, columns: Sequence[str], mapped: Mapping[str, str]) -> list[str]:
    if field in mapped:
        return [mapped[field]]
    return [name for name in _ALIASES.get(field, (field,)) if name in columns]


def _misfit(fits: list[str], forced: str, columns: Sequence[str], mapped: Mapping[str, str]) -> str:
    shown = ", ".join(columns) or "none"
    if fits:
        return f"the columns ({shown}) fit {' and '.join(fits)}; choose one with --format"
    choices = "; ".join(
        f"{name} ({', '.join(' or '.join(_ALIASES.get(field, (field,))) for field in fields)})"
        for name, fields in _REQUIRED.items()
    )
    if forced != "auto":
        missing = [field for field in _REQUIRED[forced] if not _columns_of(field, columns, mapped)]
        needed = " and ".join(missing)
        return f"--format {forced} needs {needed} (the columns are: {shown}); name yours with --map {missing[0]}=COLUMN"
    begun = [name for name in _REQUIRED if mapped and {*mapped} <= {*_REQUIRED[name], *_OPTIONAL[name]}]
    if begun:
        lacking = " and ".join(field for field in _REQUIRED[begun[0]] if not _columns_of(field, columns, mapped))
        return f"with this --map a row is {begun[0]}, and {lacking} is missing (the columns are: {shown}); map it too"
    return (
        f"no known format fits the columns ({shown}); the formats are {choices}. Name your columns with --map, as in"
        " --map prompt=question,completion=answer"
    )


def turns(value: Any, column: str) -> list[Message]:
    """The turns of a conversation as role and content. Raises `RowFault`."""
    if isinstance(value, str):  # JSON in a text column
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise RowFault("not_text", f"column {column!r} is no list of turns with role and content (or from and value)")
    found = [_turn(turn, f"column {column!r}, turn {number}") for number, turn in enumerate(value)]
    if not found:
        raise RowFault("no_assistant_turn", f"column {column!r} has no turns")
    return found


def _turn(turn: Mapping[str, Any], where: str) -> Message:
    if "from" in turn and "role" not in turn:
        speaker = turn["from"].lower() if isinstance(turn["from"], str) else None
        if speaker not in _ROLES:
            raise RowFault("unknown_role", f"{where}: from {turn['from']!r} is not known (known: {', '.join(_ROLES)})")
        message = {"role": _ROLES[speaker], "content": turn.get("value")}
    else:
        message = {key: value for key, value in turn.items() if value is not None}  # as transformers does
    role = message.get("role")
    if not isinstance(role, str):
        raise RowFault("unknown_role", f"{where}: it has no role")
    content = message.get("content")
    if isinstance(content, list):
        content = message["content"] = _joined(content, f"{where} ({role})")
    says_more = role == "assistant" and bool(said_besides(message))
    if content is None:
        if not says_more:
            raise RowFault("null_content", f"{where} ({role}): its content is null or missing")
    elif not isinstance(content, str):
        raise RowFault("not_text", f"{where} ({role}): its content is {_kind(content)}; a text is needed")
    elif role in ("user", "assistant") and not says_more and not content.strip():
        raise RowFault("empty_turn", f"{where} ({role}): it is empty")
    return message


def said_besides(turn: Message) -> list[str]:
    """What an assistant turn says besides its content: reasoning, and the names of functions called."""
    said = [turn[key] for key in _REASONING if isinstance(turn.get(key), str) and turn[key].strip()]
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function", call) if isinstance(call, dict) else {}
        name = function.get("name") if isinstance(function, dict) else None
        said.append(str(name or call))
    return said


def unsaid(turn: Message, turn_text: str) -> str | None:
    """What of `said_besides` is missing in the text of the turn, the first of it; words of the content do not count."""
    content = turn.get("content")
    rest = turn_text.replace(content.strip(), "", 1) if isinstance(content, str) else turn_text
    return next((said for said in said_besides(turn) if said.strip() not in rest), None)


def _joined(parts: list[Any], where: str) -> str:
    """A content given in parts, as one text; most templates would write a list as Python shows it."""
    texts = [
        part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part for part in parts
    ]
    if not all(isinstance(text, str) for text in texts):
        raise RowFault("not_text", f"{where}: its content has parts that are no text")
    return "".join(map(str, texts))


def _as_turns(value: Any, role: str, column: str) -> list[Message]:
    return turns([{"role": role, "content": value}] if isinstance(value, str) else value, column)


def _one_system(messages: list[Message]) -> list[Message]:
    """The chat without a second system turn at its beginning. Raises `RowFault` if the two differ."""
    if [turn["role"] for turn in messages[:2]] != ["system", "system"]:
        return messages
    if messages[0]["content"] != messages[1]["content"]:
        raise RowFault("two_system_turns", "it begins with two system turns (or a system column and one) that differ")
    return messages[1:]


def _kind(value: Any) -> str:
    return {list: "a list", dict: "an object", bool: "a boolean", int: "a number", float: "a number"}.get(
        type(value), type(value).__name__
    )
