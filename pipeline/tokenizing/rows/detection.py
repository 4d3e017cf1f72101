"""What the first rows of a file show of how it is to be read, where the names of its columns do not say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipeline.base.words import listed
from pipeline.tokenizing.rows.guards import has_question, preferences_in
from pipeline.tokenizing.rows.messages import EMPTY, REASONING, ROLES, keys_of_turns, name_of, parsed
from pipeline.tokenizing.rows.paths import value_at
from pipeline.tokenizing.rows.turn_reader import TurnReader

_DEPTH = 2
"""How far inside a column a chat is looked for."""

_USERS = ("user", "human", "[inst]", "###")
"""One of these stands in every mark of a user; most texts have none, which is quicker to see."""

_BEGINNING = 2000
"""Characters of a text in which the first turn begins, if it is a chat."""

_CONTENT_KEYS = ("content", "value", "tool_calls", "function_call", *REASONING)

_QUESTIONS = ("prompt", "question", "query", "instruction", "problem", "input", "inputs", "user", "human")
_ANSWERS = ("completion", "response", "answer", "output", "assistant", "gpt", "bot", "solution", "reply", "targets")
_CONTEXTS = ("context", "input", "passage", "document")
"""What columns of pairs are called, the likelier names first."""

_ROLE_MARKS = tuple(
    (re.compile(user, re.MULTILINE), re.compile(assistant, re.MULTILINE))
    for user, assistant in (
        (r"<\|im_start\|>user", r"<\|im_start\|>assistant"),
        (r"<\|start_header_id\|>user", r"<\|start_header_id\|>assistant"),
        (r"<start_of_turn>user", r"<start_of_turn>model"),
        (r"<[|｜][Uu]ser[|｜]>", r"<[|｜][Aa]ssistant[|｜]>"),
        (r"\[INST\]", r"\[/INST\]"),
        (r"(?i:### ?(?:human|user|instruction|question) ?:)", r"(?i:### ?(?:assistant|response|answer|gpt|bot) ?:)"),
        (r"(?:^|(?<=\s))USER:", r"(?:^|(?<=\s))ASSISTANT:"),
        (r"(?i:^\W{0,3}(?:human|user)\W{0,3}:)", r"(?i:^\W{0,3}(?:assistant|gpt|chatgpt|ai|bot|model)\W{0,3}:)"),
    )
)
"""How turns begin in chats that are one string: the user's, the assistant's. Names alone stand where a line begins."""


@dataclass(frozen=True, kw_only=True)
class FirstRows:
    """The rows of a file that are looked at."""

    look: Callable[[], Sequence[Mapping[str, Any]]] = tuple
    """Reads them, when they are needed."""

    reader: TurnReader = field(default_factory=TurnReader)

    @cached_property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The rows, read once."""
        return self.look()

    def chats(self, columns: Sequence[str], ignored: Sequence[str] = ()) -> list[str]:
        """Where most rows have a chat: columns, or paths into structs and JSON text. ignored: names passed over."""
        return [path for name in columns if name not in ignored for path in self._chats_in(name, ignored)]

    def has(self, path: str) -> bool:
        """Whether any row has a value there."""
        return bool(self._values(path))

    def end_with_user(self, path: str) -> bool:
        """Whether most chats at a path end with a turn of the user."""
        last = [value[-1] for value in map(parsed, self._values(path)) if self._is_chat(value)]
        return _mostly(last, lambda turn: self._role(turn) == "user")

    def answer(self, columns: Sequence[str]) -> str | None:
        """The column of texts that is called like an answer, if there is one."""
        return next((name for name in _ANSWERS if name in columns and name in self._texts(name)), None)

    def hold_calls(self, path: str) -> bool:
        """Whether most values that are not empty are lists of tool calls, or JSON text of them."""
        return _mostly(
            [value for value in self._values(path) if parsed(value) != []],
            lambda value: are_calls(parsed(value)) and any("arguments" in call for call in _as_list(parsed(value))),
        )

    def role_marks(self, path: str) -> str | None:
        """The marks that begin turns where most values are chats in one string, as `User: … Assistant:`."""
        found = [role_marks(value) if isinstance(value, str) else None for value in self._values(path)]
        return next(filter(None, found)) if _mostly(found, lambda marks: marks is not None) else None

    def advice(self, columns: Sequence[str]) -> str | None:
        """What to do with a file of which no column's name fits, if the rows show it."""
        preferences = preferences_in(columns)
        if preferences:
            return self._preference_advice(columns, *preferences)
        for column in columns:
            marks = self.role_marks(column)
            if marks:
                return f"column {column!r} {one_string(marks)}, or train all of it by {_AS_TEXT.format(column)}"
        pair = self._pair_advice(columns)
        if pair:
            return pair
        for column in columns:
            lists = [value for value in map(parsed, self._values(column)) if isinstance(value, list) and value]
            if lists and (told := self._list_advice(column, lists[0])):
                return told
        return None

    def _chats_in(self, path: str, ignored: Sequence[str], depth: int = _DEPTH) -> Iterator[str]:
        values = [parsed(value) for value in self._values(path)]
        if _mostly(values, self._is_chat):
            yield path
        elif depth and _mostly(values, lambda value: isinstance(value, dict)):
            for key in _keys(values):
                if key not in ignored:
                    yield from self._chats_in(f"{path}.{key}", ignored, depth - 1)

    def _values(self, path: str) -> list[Any]:
        values = [value_at(row, path) for row in self.rows]
        return [value for value in values if value is not None and value not in ("", [], {})]

    def _is_chat(self, value: Any) -> bool:
        return isinstance(value, list) and bool(value) and all(map(self._is_turn, value))

    def _is_turn(self, turn: Any) -> bool:
        if not isinstance(turn, dict):
            return False
        contents = (self.reader.content_key, *_CONTENT_KEYS) if self.reader.content_key else _CONTENT_KEYS
        return self._role(turn) is not None and any(key in turn for key in contents)

    def _role(self, turn: Mapping[str, Any]) -> str | None:
        speaker = turn.get(self.reader.role_key or ("role" if "role" in turn else "from"))
        if not isinstance(speaker, str):
            return None
        return self.reader.speakers.get(speaker) or ROLES.get(speaker.lower(), speaker)

    def _preference_advice(self, columns: Sequence[str], wanted: str, other: str) -> str:
        told = f"these are preferences ({wanted}, {other})"
        marks = self.role_marks(wanted)
        if marks:
            return f"{told}, and column {wanted!r} {one_string(marks)}, or train all of it by {_AS_TEXT.format(wanted)}"
        answers = self._values(wanted)
        mapped = f"completion={wanted}"
        if "prompt" not in columns and (asked := next((name for name in _QUESTIONS if name in columns), None)):
            chats = self.chats([asked])
            question = chats[0] if len(chats) == 1 else asked
            mapped = f"output={wanted}" if asked == "instruction" else f"prompt={question},{mapped}"
        if _mostly(answers, has_question) and not self.chats(["prompt"]):
            mapped = f"messages={wanted}"
        return f"{told}: the wanted one is trained with --map {mapped}"

    def _list_advice(self, column: str, value: list[Any]) -> str | None:
        if all(isinstance(one, str) for one in value):
            return f"column {column!r} {PLAIN_STRINGS}"
        if not all(isinstance(one, dict) for one in value):
            return None
        keys = keys_of_turns(value)
        if not keys:
            return (
                f"column {column!r} holds lists of objects with the keys {listed(_keys(value), 'and')}; turns have role"
                " and content, or keys named by --keys, as in --keys role=speaker,content=text"
            )
        mapped = "" if column in ("messages", "conversations") else f"--map messages={column} "
        return f"column {column!r} looks like a chat under other names: {mapped}{keys} reads it"

    def _pair_advice(self, columns: Sequence[str]) -> str | None:
        """The `--map` under which texts of a known name are a pair."""
        paths = {path.rpartition(".")[2]: path for column in reversed(columns) for path in self._texts(column)}
        question = next((name for name in _QUESTIONS if name in paths), None)
        answer = next((name for name in _ANSWERS if name in paths and name != question), None)
        if question is None or answer is None:
            return None
        context = next((name for name in _CONTEXTS if name in paths and name not in (question, answer)), None)
        fields = ("instruction", "input", "output") if context else ("prompt", "completion")
        found = [paths[name] for name in (question, context, answer) if name]
        mapped = [f"{field}={path}" for field, path in zip(fields, found, strict=True) if field != path]
        shown = listed([repr(path) for path in found], "and")
        return f"{shown} look like a question and its answer: --map {','.join(mapped)} reads them"

    def _texts(self, column: str) -> Iterator[str]:
        values = self._values(column)
        objects = [value for value in map(parsed, values) if isinstance(value, dict)]
        if _mostly(values, lambda value: isinstance(value, str)) and len(objects) * 2 <= len(values):
            yield column
        for key in _keys(objects):
            if any(isinstance(value.get(key), str) for value in objects):
                yield f"{column}.{key}"


_AS_TEXT = "--map text={} --format text"

PLAIN_STRINGS = (
    "holds lists of plain strings, which do not say who speaks; write every turn as an object with role and content"
)


def role_marks(text: str) -> str | None:
    """The marks that begin turns in a text that is a whole chat, as `User: … Assistant:`; None in others."""
    head = text[:_BEGINNING].lower()
    if not any(word in head for word in _USERS):
        return None
    for user, assistant in _ROLE_MARKS:
        asked = user.search(text, 0, _BEGINNING)
        told = assistant.search(text, asked.end()) if asked else None
        if asked and told:
            return f"{asked[0].strip()} … {told[0].strip()}"
    return None


def one_string(marks: str) -> str:
    """What is said of a column of chats in one string."""
    return (
        f"holds chats in one string ({marks}), in which a turn's end is a guess; write them as lists of turns with role"
        " and content"
    )


def not_a_chat(value: Any) -> str:
    """What a value is that should be a list of turns, and is none; nothing where that says nothing."""
    if isinstance(value, str):
        marks = role_marks(value)
        return f": it {one_string(marks)}" if marks else ""
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return f": it {PLAIN_STRINGS}"
    if isinstance(value, dict) and value and all(isinstance(one, list) for one in value.values()):
        return f": it holds lists under {listed(value, 'and')}; write every turn as an object with role and content"
    return ": it holds bytes; write them as text" if isinstance(value, bytes) else ""


def pair_of(value: Any) -> list[str] | None:
    """A question and its answer, given as a list or an object of the two; None for anything else."""
    if isinstance(value, dict):
        names = [next((name for name in of if name in value), "") for of in (_QUESTIONS, _ANSWERS)]
        if any(one not in EMPTY for name, one in value.items() if name not in names):
            return None
        value = [value.get(name) for name in names]
    return value if isinstance(value, list) and [*map(type, value)] == [str, str] else None


def are_calls(value: Any) -> bool:
    """Whether a value is one tool call or several."""
    calls = _as_list(value)
    return bool(calls) and all(isinstance(call, dict) and "role" not in call and bool(name_of(call)) for call in calls)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _keys(objects: Sequence[Any]) -> list[str]:
    return list(dict.fromkeys(key for one in objects if isinstance(one, dict) for key in one))


def _mostly(values: Sequence[Any], is_so: Callable[[Any], bool]) -> bool:
    return 2 * sum(map(is_so, values)) > len(values)
