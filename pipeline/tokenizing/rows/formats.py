"""What a raw row is: a chat, a pair or a text. Which columns say so, and what in a row is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pipeline.base.words import listed
from pipeline.format.options import TEMPLATE_KWARGS, TEMPLATE_OWN
from pipeline.tokenizing.rows.detection import are_calls, not_a_chat, pair_of
from pipeline.tokenizing.rows.guards import refusal
from pipeline.tokenizing.rows.messages import (
    EMPTY,
    REASONING,
    Mark,
    Message,
    RowFault,
    functions_in,
    is_blank,
    is_named,
    keys_of_turns,
    kind_of,
    name_of,
    parsed,
    reasoning_of,
    with_schema,
)
from pipeline.tokenizing.rows.paths import column_of, columns_of, value_at
from pipeline.tokenizing.rows.samples import Chat, Pair, Sample, Text
from pipeline.tokenizing.rows.turn_reader import TurnReader, is_turn


@dataclass(frozen=True, kw_only=True)
class Format:
    """How the rows of a file are read."""

    name: str
    columns: Mapping[str, str]
    """Field -> column, or path into one, of the fields that are there."""

    unseen: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Field that later rows may have, and none had so far -> the other names that its column may have."""

    reader: TurnReader = field(default_factory=TurnReader)
    guards: tuple[str, ...] = ()
    """Columns, or paths into one, that must not have content."""

    completes_with_calls: bool = False
    """Whether the completion is a list of tool calls, or JSON text of one."""

    @cached_property
    def _read(self) -> frozenset[str]:
        """Every path that is looked at, and those on the way to it."""
        others = [column for columns in self.unseen.values() for column in columns]
        parts = [path.split(".") for path in (*self.columns.values(), *self.guards, *others)]
        return frozenset(".".join(names[:end]) for names in parts for end in range(1, len(names) + 1))

    @cached_property
    def _insides(self) -> frozenset[str]:
        """The paths inside which something is looked at."""
        return frozenset(path.rpartition(".")[0] for path in self.columns.values() if "." in path)

    def unread(self, row: Mapping[str, Any]) -> list[str]:
        """The columns of a row, and the keys beside what is read inside one, that have content and are not read."""
        found = [name for name, value in row.items() if name not in self._read and value not in EMPTY]
        for inside in self._insides:
            value = value_at(row, inside)
            if isinstance(value := parsed(value), dict):
                paths = ((f"{inside}.{key}", one) for key, one in value.items())
                found += [path for path, one in paths if path not in self._read and one not in EMPTY]
        return found

    def overruled(self, row: Mapping[str, Any]) -> list[str]:
        """The keys of its turns in whose place `--keys` names others, as often as they have content of their own."""
        if not self.reader.renames:
            return []
        keys = {"role": self.reader.role_key, "content": self.reader.content_key}
        keys = {name: key for name, key in keys.items() if key not in (None, name)}
        columns = [self.columns[field] for field in ("messages", "prompt", "completion") if field in self.columns]
        values = [parsed(value_at(row, column)) for column in columns]
        turns = [turn for value in values if isinstance(value, list) for turn in value if isinstance(turn, dict)]
        return [
            name
            for turn in turns
            for name, key in keys.items()
            if turn.get(name) not in EMPTY and turn[name] != turn.get(key)
        ]

    @property
    def default_train_on(self) -> str:
        """Targets, unless the user says otherwise."""
        return {"messages": "assistant", "tree": "assistant", "text": "all"}.get(self.name, "completion")

    def without_template(self) -> Format:
        """The same, for rows that no template renders."""
        return replace(self, columns={name: one for name, one in self.columns.items() if name != TEMPLATE_KWARGS})

    @property
    def key(self) -> tuple[object, ...]:
        """What tells it from the other formats of a run."""
        return (self.name, *self.columns.items(), self.guards, self.completes_with_calls)

    def present(self, columns: Sequence[str]) -> list[str]:
        """The columns of a file that are looked at."""
        wanted = [column_of(path, columns) for path in (*self.columns.values(), *self.guards)]
        return list(dict.fromkeys(column for column in wanted if column is not None))

    def sample(self, row: Mapping[str, Any], *, as_chat: bool) -> Sample:
        """Read a row. as_chat: make pairs into chats of two turns. Raises `RowFault`."""
        self.guard(row)
        sample = self._sample(row, as_chat=as_chat)
        kwargs = self._kwargs(row)
        return replace(sample, kwargs=kwargs) if kwargs and isinstance(sample, Chat) else sample

    def _sample(self, row: Mapping[str, Any], *, as_chat: bool) -> Sample:
        if self.name == "text":
            return Text(self._text(row, "text"))
        if self.name == "messages":
            messages, marks = self._turns(self._value(row, "messages"), self.columns["messages"])
            return self._chat(self._system(row), messages, marks, self._tools(row))
        if self.name == "instruction":
            parts = [self._text(row, "instruction"), self._optional_text(row, "input")]
            prompt, completion = "\n".join(part for part in parts if part), self._text(row, "output")
        else:
            prompt, completion = (self._value(row, name) for name in ("prompt", "completion"))
            if self.completes_with_calls:
                completion = self._calling(completion)
            if isinstance(prompt, list) or isinstance(completion, list) or is_turn(completion, self.reader):
                return self._pair_of_turns(row, prompt, completion)
            prompt, completion = (self._text(row, name) for name in ("prompt", "completion"))
        system, (earlier, marks), tools = self._system(row), self._history(row), self._tools(row)
        notes = ["history_column"] if earlier else []
        answer = self._reasoned(row, [{"role": "assistant", "content": completion}])
        if as_chat:
            pair = [{"role": "user", "content": prompt}, *answer]
            if not earlier:
                return Chat([*system, *pair], tools, num_prompt=len(system) + 1)
            chat = self._chat(system, [*earlier, *pair], [*marks, None, None], tools)
            return replace(chat, num_prompt=len(chat.messages) - 1, notes=notes)
        if tools:
            names = ", ".join(str(name_of(tool)) for tool in tools)
            raise RowFault(
                "no_template",
                f"column {self.columns['tools']!r}: tools ({names}) need a chat template; give one with"
                " --chat-template FILE",
            )
        more = "history" if any(len(turn) > 2 for turn in earlier) or any(mark is not None for mark in marks) else ""
        more = "reasoning" if len(answer[0]) > 2 else more
        if more:
            raise RowFault(
                "no_template",
                f"column {self.columns[more]!r}: turns that are more than texts need a chat template; give one with"
                " --chat-template FILE",
            )
        if self.name == "instruction":
            prompt += "\n"
        return Pair("".join(turn["content"] + "\n" for turn in (*system, *earlier)) + prompt, completion, notes)

    def _chat(self, system: list[Message], messages: list[Message], marks: list[Mark], tools: list[Any] | None) -> Chat:
        whole = _one_system([*system, *messages])
        if not any(mark is not None for mark in marks):
            return Chat(whole, tools)
        added = len(whole) - len(messages)
        return Chat(whole, tools, marks=[*[None] * added, *marks[max(0, -added) :]])

    def _pair_of_turns(self, row: Mapping[str, Any], prompt: Any, completion: Any) -> Chat:
        asked, asked_marks = self._as_turns(prompt, "user", self.columns["prompt"])
        told, told_marks = self._as_turns(completion, "assistant", self.columns["completion"])
        told = self._reasoned(row, told)
        earlier, marks = self._history(row)
        at = int(asked[0]["role"] == "system")
        asked, asked_marks = [*asked[:at], *earlier, *asked[at:]], [*asked_marks[:at], *marks, *asked_marks[at:]]
        before = self._chat(self._system(row), asked, asked_marks, None)
        marks = [*(before.marks or [None] * len(before.messages)), *told_marks]
        return Chat(
            [*before.messages, *told],
            self._tools(row),
            num_prompt=len(before.messages),
            marks=marks if any(mark is not None for mark in marks) else (),
            notes=["history_column"] if earlier else [],
        )

    @cached_property
    def _guarded(self) -> frozenset[str]:
        """The columns in which something must not have content."""
        return frozenset(column for path in self.guards for column in columns_of(path))

    def guard(self, row: Mapping[str, Any]) -> None:
        """Raise `RowFault` for content that changes what should be trained, and is not read."""
        if self._guarded.isdisjoint(row):
            return
        for column in self.guards:
            fault = refusal(column, value_at(row, column), self.columns)
            if fault is not None:
                raise fault

    def _turns(self, value: Any, column: str) -> tuple[list[Message], list[Mark]]:
        """The turns of a conversation, and whether each says that it is trained. Raises `RowFault`."""
        value = parsed(value)
        if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
            raise RowFault(
                "not_text",
                f"column {column!r} is no list of turns with role and content (or from and value){not_a_chat(value)}",
            )
        if not value:
            raise RowFault("no_assistant_turn", f"column {column!r} has no turns")
        if all(map(self.reader.is_simple, value)):
            return value, [None] * len(value)
        keys = None if self.reader.renames or any(map(is_named, value)) else keys_of_turns(value)
        if keys is not None:
            raise RowFault("unknown_role", f"column {column!r} looks like a chat under other names: {keys} reads it")
        found = [self.reader.message(turn, f"column {column!r}, turn {number}") for number, turn in enumerate(value)]
        return [message for message, _ in found], [mark for _, mark in found]

    def _as_turns(self, value: Any, role: str, column: str) -> tuple[list[Message], list[Mark]]:
        if isinstance(value, str):
            return [{"role": role, "content": value}], [None]
        return self._turns([value] if is_turn(value, self.reader) else value, column)

    def _calling(self, completion: Any) -> Any:
        """A completion that calls functions, as a turn; a text that is no call stays an answer. Raises `RowFault`."""
        calls = parsed(completion)
        if calls == []:
            raise RowFault("empty_turn", f"column {self.columns['completion']!r} has no tool call")
        if not are_calls(calls):
            return completion
        return [{"role": "assistant", "content": "", "tool_calls": calls if isinstance(calls, list) else [calls]}]

    def _history(self, row: Mapping[str, Any]) -> tuple[list[Message], list[Mark]]:
        """The earlier turns that a column gives as questions with answers, or as turns. Raises `RowFault`."""
        column = self.columns.get("history", "")
        history = parsed(value_at(row, column))
        if not history:
            return [], []
        if isinstance(history, list) and all(is_turn(turn, self.reader) for turn in history):
            return self._turns(history, column)
        pairs = [pair_of(pair) for pair in history] if isinstance(history, list) else [None]
        turns: list[Message] = []
        for pair in pairs:
            if pair is None:
                raise RowFault(
                    "not_text",
                    f"column {column!r} is no list of [question, answer] pairs, nor of turns with role and content;"
                    " write it as one of these, or drop the column",
                )
            turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
        return turns, [None] * len(turns)

    def _value(self, row: Mapping[str, Any], name: str) -> Any:
        column = self.columns[name]
        value = value_at(row, column)
        if value is None:
            raise RowFault("null_content", f"column {column!r} is {'null' if column in row else 'missing'}")
        return value

    def _text(self, row: Mapping[str, Any], name: str) -> str:
        value = _text_of(self._value(row, name), self.columns[name])
        if not value.strip() and name not in ("input", "system"):
            raise RowFault("empty_turn", f"column {self.columns[name]!r} is empty")
        return value

    def _optional_text(self, row: Mapping[str, Any], name: str) -> str:
        if name not in self.columns and name not in self.unseen:
            return ""
        is_there = value_at(row, self.columns.get(name, "")) is not None
        others = [other for other in self.unseen.get(name, ()) if value_at(row, other) is not None]
        if not others:
            return self._text(row, name) if is_there else ""
        if len(others) > 1 or is_there:
            both = listed(map(repr, (self.columns[name], *others)), "and")
            raise RowFault("not_text", f"columns {both} could both be the {name}")
        return _text_of(value_at(row, others[0]), others[0])

    def _system(self, row: Mapping[str, Any]) -> list[Message]:
        """The system turn that a column of its own gives, if any."""
        content = self._optional_text(row, "system")
        return [{"role": "system", "content": content}] if content else []

    def _tools(self, row: Mapping[str, Any]) -> list[Any] | None:
        """The tools that a column of its own describes, if any. Raises `RowFault`."""
        tools = value_at(row, self.columns["tools"]) if "tools" in self.columns else None
        if is_blank(tools):
            return None
        functions = functions_in(tools, f"column {self.columns['tools']!r}") or None
        return [*map(with_schema, functions)] if functions and self.completes_with_calls else functions

    def _reasoned(self, row: Mapping[str, Any], turns: list[Message]) -> list[Message]:
        """Answers; a single one with the reasoning that a column of its own gives, if any. Raises `RowFault`."""
        reasoning = self._optional_text(row, "reasoning")
        if not reasoning.strip():
            return turns
        if len(turns) != 1 or reasoning_of(turns[0]) not in (None, reasoning):
            raise RowFault(
                "contradictory_reasoning",
                f"column {self.columns['reasoning']!r}: which turn it belongs to cannot be told, or that has another;"
                " give it as reasoning_content of its turn, or drop the column",
            )
        return [{**turns[0], REASONING[0]: reasoning}]

    def _kwargs(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What the row tells its template besides; nulls tell nothing. Raises `RowFault`."""
        column = self.columns.get(TEMPLATE_KWARGS)
        if column is None:
            return {}
        told = parsed(value_at(row, column))
        if told is None or told == "":
            return {}
        if not isinstance(told, dict):
            what = "a text that is no JSON" if isinstance(told, str) else kind_of(told)
            raise RowFault(
                "bad_template_kwargs",
                f'column {column!r} holds {what}; an object is needed, as in {{"enable_thinking": false}}, or its text',
            )
        own = [name for name in TEMPLATE_OWN if name in told]
        if own:
            raise RowFault(
                "bad_template_kwargs",
                f"column {column!r} has {listed(own, 'and')}: templates have it from us, and cannot be told otherwise",
            )
        return {name: one for name, one in told.items() if one is not None}


def _text_of(value: Any, column: str) -> str:
    """A value that has to be a text. Raises `RowFault`."""
    if not isinstance(value, str):
        raise RowFault("not_text", f"column {column!r} holds {kind_of(value)}; a text is needed")
    return value


def _one_system(messages: list[Message]) -> list[Message]:
    """The chat without a second system turn at its beginning. Raises `RowFault` if the two differ."""
    if [turn["role"] for turn in messages[:2]] != ["system", "system"]:
        return messages
    if messages[0]["content"] != messages[1]["content"]:
        raise RowFault("two_system_turns", "it begins with two system turns (or a system column and one) that differ")
    return messages[1:]
