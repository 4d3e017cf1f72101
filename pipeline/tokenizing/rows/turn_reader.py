"""One turn of a chat as people write it → the message that templates are given, and whether the data has it trained."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.base.words import listed
from pipeline.tokenizing.rows.guards import refuse_media
from pipeline.tokenizing.rows.messages import (
    CALLERS,
    EMPTY,
    MARKS,
    REASONING,
    ROLES,
    TOOL_ROLES,
    Mark,
    Message,
    PartMarks,
    RowFault,
    calls_in,
    is_blank,
    kind_of,
    parsed,
    reasoning_of,
    said_besides,
    with_calls,
)

_TEXT_PARTS = ("text", "input_text", "output_text")
_THINKING_PARTS = ("thinking", "reasoning")
_CONTENTS = ("value", "text", "message", "parts")
"""What the content of a turn is called otherwise."""

_MEDIA = re.compile(r"(?:input_)?(image|audio|video)(?:_url)?")
"""The types of parts that are no text."""

_BESIDE_TEXT = ("type", "id", "index", "cache_control", "annotations", "logprobs", "signature", *MARKS)
"""Keys of a part of text that say nothing more."""


@dataclass(frozen=True, kw_only=True)
class TurnReader:
    """How turns are written in a file."""

    role_key: str | None = None
    content_key: str | None = None
    speakers: Mapping[str, str] = field(default_factory=dict)
    """What the user calls a speaker -> role."""

    reasoning_marks: tuple[str, str] = ("<think>", "</think>")
    """Between which inline reasoning stands."""

    read_otherwise: frozenset[str] = frozenset(CALLERS)
    """Roles that are not the template's: calls, and the names of the role `tool` that it does not know."""

    @property
    def renames(self) -> bool:
        """Whether other keys are named for the role or the content."""
        return self.role_key is not None or self.content_key is not None

    def message(self, turn: Mapping[str, Any], where: str) -> tuple[Message, Mark]:
        """A turn as templates expect it, and whether it says that it is trained. Raises `RowFault`."""
        if self.is_simple(turn):
            return dict(turn), None
        refuse_media(turn, where)
        trained: Mark
        message, trained = self._named(turn, where)
        role = message["role"]
        content = message.get("content")
        if isinstance(content, list) and (role not in TOOL_ROLES or _are_parts(content)):
            content, trained = _joined(message, content, trained, f"{where} ({role})")
        elif isinstance(content, dict | list) and role in TOOL_ROLES:
            content = json.dumps(content, ensure_ascii=False)
        if content is not None:
            message["content"] = content
        message = with_calls(message, f"{where} ({role})")
        for key in [key for key in REASONING if key in message]:
            if not isinstance(message[key], str):
                raise RowFault("not_text", f"{where} ({role}): its {key} is {kind_of(message[key])}; a text is needed")
            if not message[key].strip():
                del message[key]
        opening, closing = self.reasoning_marks
        says_more = role == "assistant" and bool(said_besides(message))
        if content is None:
            if not says_more:
                other = next((key for key in _CONTENTS if isinstance(message.get(key), str | list)), None)
                way = f"; --keys content={other} reads its {other}" if other else ""
                raise RowFault("null_content", f"{where} ({role}): its content is null or missing{way}")
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

    def is_simple(self, turn: Mapping[str, Any]) -> bool:
        """Whether it is a role and a text, so that nothing is to be done."""
        role, content = turn.get("role"), turn.get("content")
        return (
            len(turn) == 2
            and isinstance(role, str)
            and isinstance(content, str)
            and role not in self.read_otherwise
            and not (self.renames or self.speakers)
            and not (content.isspace() or not content)
            and self.reasoning_marks[0] not in content
        )

    def _named(self, turn: Mapping[str, Any], where: str) -> tuple[Message, bool | None]:
        """The turn with role and content under these names, without nulls and marks."""
        message = {key: value for key, value in turn.items() if value is not None}  # as transformers does
        is_from = self.role_key is None and "from" in turn and "role" not in message
        role_key = self.role_key or ("from" if is_from else "role")
        content_key = self.content_key or ("value" if is_from else "content")
        speaker, content = message.pop(role_key, None), message.pop(content_key, None)
        if is_from:
            content = _agreed(content, message.pop("content", None), where)
        for key in ("role", "content"):  # which others were named for
            message.pop(key, None)
        if not is_blank(message.pop("train_detail", None)):
            raise RowFault(
                "unknown_mark",
                f"{where}: it has train_detail, which is not supported; give its content in parts, each with train",
            )
        trained = _is_trained({key: message.pop(key) for key in MARKS if key in message}, where)
        if not isinstance(speaker, str) and not is_from:
            raise RowFault(
                "unknown_role",
                f"{where}: it has no role (its keys are: {', '.join(map(str, turn)) or 'none'}); name who speaks with"
                " --keys, as in --keys role=speaker,content=text",
            )
        speaker = speaker if isinstance(speaker, str) else repr(speaker)
        role = self.speakers.get(speaker)
        if role is None and is_from:
            name = speaker.lower().replace("-", "_")
            role = ROLES.get(name) or (name if name in CALLERS else None)
            if role is None:
                known = ", ".join((*ROLES, *CALLERS))
                raise RowFault(
                    "unknown_role",
                    f"{where}: from {speaker!r} is not known (known: {known}); name it with --roles, as in"
                    f" --roles user={speaker}",
                )
        role = role or speaker
        if role in self.read_otherwise and role not in CALLERS:
            role = "tool"
        named: Message = {"role": role}
        if role in CALLERS:
            if not is_blank(message.pop("tool_calls", None)):
                raise RowFault("contradictory_marks", f"{where}: its text is a call, and it has tool_calls too")
            named = {"role": "assistant", "tool_calls": calls_in(content, where, "its text")}
            content = ""
        if content is not None:
            named["content"] = content
        return named | message, trained


def is_turn(value: Any, reader: TurnReader) -> bool:
    """Whether a value is one turn: an object that says who speaks."""
    return isinstance(value, dict) and any(value.get(key) for key in (reader.role_key or "role", "from"))


def _agreed(content: Any, other: Any, where: str) -> Any:
    """The content of a turn that has value and content. Raises `RowFault` where they differ."""
    if content is not None and other not in EMPTY and other != content:
        raise RowFault(
            "contradictory_marks",
            f"{where}: its value and its content differ; --keys role=from,content=value takes one",
        )
    return other if content is None else content


def _is_trained(marks: Mapping[str, Any], where: str) -> bool | None:
    """What the marks of a turn say; None where there is none. Raises `RowFault` for other values and contradictions."""
    said: dict[str, bool] = {}
    for key, value in marks.items():
        if is_blank(value):
            continue
        number = parsed(value.lower()) if isinstance(value, str) else value
        if not isinstance(number, bool | int | float) or not math.isfinite(number) or number not in (0, 1):
            raise RowFault(
                "unknown_weight",
                f"{where}: {key} {value!r} is neither 0 nor 1, and other weights are not supported yet",
            )
        said[key] = bool(number) is not (key == "masked")
    if len(set(said.values())) > 1:
        raise RowFault("contradictory_marks", f"{where}: {listed(said, 'and')} contradict each other")
    return next(iter(said.values()), None)


def _are_parts(content: list[Any]) -> bool:
    """Whether what a tool gave is text in parts, or pictures and the like; otherwise it is data."""
    types = [part.get("type") for part in content if isinstance(part, dict)]
    if any(isinstance(type_, str) and _MEDIA.fullmatch(type_) for type_ in types):
        return True
    return bool(content) and all(
        isinstance(part, dict)
        and isinstance(part.get("text"), str)
        and part.get("type") in (None, *_TEXT_PARTS)
        and all(_is_beside(key, part) or value in EMPTY for key, value in part.items())
        for part in content
    )


def _is_beside(key: str, part: Mapping[str, Any]) -> bool:
    """Whether a key of a part of text says nothing more than its text."""
    return key == "text" or (bool(part.get("type")) and key in _BESIDE_TEXT)


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
        marks = {key: part[key] for key in MARKS if part.get(key) is not None}
        trained = _is_trained(marks, f"{where}: part {number}")
        type_ = part.get("type") or "text"
        keys = (*(_THINKING_PARTS if type_ in _THINKING_PARTS else ()), "text", "value", "content")
        text = next((part[key] for key in keys if isinstance(part.get(key), str)), None)
        if type_ not in (*_TEXT_PARTS, *_THINKING_PARTS):
            media = _MEDIA.fullmatch(str(type_))
            raise RowFault(
                media[1] if media else "not_text",
                f"{where}: part {number} is of type {type_}; only text and thinking can be tokenised",
            )
        if text is None:
            raise RowFault(
                "not_text", f"{where}: part {number} has no text (its keys are: {', '.join(part) or 'none'})"
            )
        beside = [key for key, value in part.items() if key not in _BESIDE_TEXT and value not in (*EMPTY, text)]
        if beside:
            raise RowFault(
                "not_text",
                f"{where}: part {number} has {listed(beside, 'and')} beside its text; only text and thinking can be"
                " tokenised",
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
