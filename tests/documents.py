"""What README and docs say, read so that it can be held against the code. A check returns what is wrong, in words."""

from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import click
import msgspec
import pyarrow as pa

from pipeline.command.main import commands
from pipeline.format.counts import Loss, Losses

ROOT = Path(__file__).parents[1]
OLD_WORDS = ("segment_starts", "skipped_rows", "skipped.jsonl", "on-error skip", "random_", "counts.skipped")

Flags = Mapping[str, set[str]]
"""The flags of each command, as "pipeline pack"."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
_OURS = re.compile(r"(?:-m (pipeline|training)|tightpack) +([a-z]+)(.*)")
_PATH = re.compile(r"(?:docs|scripts|benchmarks|tests|pipeline|strategies|training|\.ci)/[\w./-]*")


def pages() -> dict[str, str]:
    """The text of every page, by its path."""
    files = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")]
    return {str(path.relative_to(ROOT)): path.read_text() for path in (*files, *sorted((ROOT / "docs").glob("*.md")))}


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    _, found, rest = f"\n{text}".partition(f"\n{heading}\n")
    assert found, f"there is no {heading!r}"
    return re.split(rf"^#{{1,{level}}} ", _FENCE.sub(lambda code: code[0].replace("\n#", "\n #"), rest), flags=re.M)[0]


def code_block(text: str, heading: str) -> str:
    """The first block of Python under a heading."""
    return next(found[2] for found in _FENCE.finditer(section(text, heading)) if found[1] == "python")


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its header."""
    return first_table(section(text, heading))


def first_table(text: str) -> list[list[str]]:
    """The cells of the first table of a text, without its header."""
    lines = text.splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("| ---"))
    rows = []
    for line in lines[first + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def marked(cell: str) -> list[str]:
    """What stands in marks of code."""
    return _INLINE.findall(cell)


def links(name: str, text: str, root: Path = ROOT) -> list[str]:
    """Relative links that lead nowhere."""
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", text)):
        path, _, anchor = target.partition("#")
        file = (root / name).parent / path if path else root / name
        if re.match(r"[a-z]+:", target):
            continue
        if not file.exists():
            wrong.append(f"{name}: {target} leads nowhere")
        elif anchor and anchor not in _anchors(text if not path else file.read_text()):
            wrong.append(f"{name}: {target} names no heading")
    return wrong


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def all_flags() -> Flags:
    """Of both command lines: ours as click has them, those of `training` from its help, wherever its code stands."""
    found = {
        f"pipeline {name}": {name for param in command.params if isinstance(param, click.Option) for name in param.opts}
        for name, command in commands.commands.items()
    }
    listed = _help("training").partition("Commands:\n")[2]
    for name in re.findall(r"^  ([a-z]+)  ", listed, re.MULTILINE):
        found[f"training {name}"] = set(_FLAG.findall(_help("training", name)))
    return {name: {*flags, "--help"} for name, flags in found.items()}


def _help(*command: str) -> str:
    call = [sys.executable, "-m", *command, "--help"]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def unknown_flags(name: str, text: str, known: Flags) -> list[str]:
    """Flags that the command with which they are shown does not have, or that no command has."""
    wrong = []
    for where, flags in _shown(text):
        if where.startswith("scripts/"):
            sources = [path for path in (ROOT / where, ROOT / f"{where}.py") if path.is_file()]
            called = [re.search(r"^exec .* -m (\w+)", path.read_text(), re.MULTILINE) for path in sources]
            sources += [ROOT / "scripts" / found[1] / "__main__.py" for found in called if found]
            unknown = {flag for flag in flags if not any(flag in path.read_text() for path in sources)}
        elif where and where not in known:
            wrong.append(f"{name}: there is no command {where}")
            continue
        else:
            unknown = flags - (known[where] if where else set().union(*known.values(), {"--version"}))
        wrong += [f"{name}: {where or 'no command'} has {flag}" for flag in sorted(unknown)]
    return wrong


def _shown(text: str) -> Iterator[tuple[str, set[str]]]:
    """Flags with the command that they are shown with; with "" where they are named alone."""
    for found in _FENCE.finditer(text):
        for line in found[2].replace("\\\n", " ").splitlines():
            yield from _of_command(line.partition(" #")[0])
    rest = _FENCE.sub("", text)
    for code in _INLINE.findall(rest):
        first = code.split()[0] if code.split() else ""
        command = {"tokenize": "pipeline", "pack": "pipeline", "verify": "pipeline", "strategies": "pipeline"}.get(
            first
        )
        if command:
            yield f"{command} {first}", set(_FLAG.findall(code))
        elif first.startswith("--"):
            yield "", set(_FLAG.findall(code))
        else:
            yield from _of_command(code)
    yield "", set(_FLAG.findall(re.sub(r"<!--.*?-->", "", _INLINE.sub("", rest), flags=re.DOTALL)))


def _of_command(line: str) -> Iterator[tuple[str, set[str]]]:
    ours, script = _OURS.search(line), re.match(r"scripts/\w+", line)
    if ours:
        yield f"{ours[1] or 'pipeline'} {ours[2]}", set(_FLAG.findall(ours[3]))
    elif script:
        yield script[0], set(_FLAG.findall(line))


def undescribed_flags(text: str, known: Flags) -> list[str]:
    """Flags of `pipeline` that no page names."""
    named = set(_FLAG.findall(text))
    flags = {flag: command for command, of in known.items() if command.startswith("pipeline") for flag in of}
    return [
        f"{command} has {flag}, which no page names" for flag, command in sorted(flags.items()) if flag not in named
    ]


def missing_paths(name: str, text: str) -> list[str]:
    """Paths of this repository, in marks of code, that are not there."""
    paths = [found[0] for code in marked(_FENCE.sub("", text)) if (found := _PATH.match(code))]
    return [f"{name}: there is no {path}" for path in paths if not (ROOT / path).exists()]


def missing_names(text: str) -> list[str]:
    """Dotted names of modules, functions and classes that are not there; those of `pipeline` without its name."""
    dotted = [code for code in marked(_FENCE.sub("", text)) if re.fullmatch(r"[a-z_]+(\.\w+)+", code)]
    files = re.compile(r".*\.(txt|md|toml|json)")
    return [f"there is no {name}" for name in dotted if not (_exists(name) or files.fullmatch(name))]


def _exists(name: str) -> bool:
    whole = name if name.startswith(("strategies.", "training.", "pipeline.")) else f"pipeline.{name}"
    parts = whole.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            value = getattr(value, part, None)
        return value is not None
    return False


def old_words(name: str, text: str) -> list[str]:
    """Words that version 1 used."""
    return [f"{name}: {word}" for word in OLD_WORDS if word in text]


def columns_in(rows: list[list[str]]) -> dict[str, str]:
    """Columns and their types, as a table has them."""
    return {marked(row[0])[0]: row[1] for row in rows}


def columns_of(schema: pa.Schema) -> dict[str, str]:
    """Columns and their types, as Arrow has them."""
    return {
        field.name: f"list<{field.type.value_type}>" if pa.types.is_list(field.type) else str(field.type)
        for field in schema
    }


def keys_in(rows: list[list[str]]) -> dict[str, str]:
    """Keys and their types, as a table has them. What is in capitals is any name."""
    return {re.sub(r"\b[A-Z]+\b", "*", key): row[1] for row in rows for key in marked(row[0])}


def keys_of(kind: type, prefix: str = "", whole: tuple[type, ...] = ()) -> dict[str, str]:
    """Keys and their types, as a record has them. whole: records whose keys are told elsewhere."""
    found: dict[str, str] = {}
    hints = typing.get_type_hints(kind, include_extras=True)
    for name, key in _fields(kind):
        found |= _keys(hints[name], f"{prefix}{key}", whole)
    return found


def _fields(kind: type) -> list[tuple[str, str]]:
    """The names of a record's fields, in Python and in JSON."""
    if dataclasses.is_dataclass(kind):
        return [(field.name, field.name) for field in dataclasses.fields(kind)]
    return [(field.name, field.encode_name) for field in msgspec.structs.fields(kind)]


def _keys(hint: Any, key: str, whole: tuple[type, ...]) -> dict[str, str]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _keys(arguments[0], key, whole)
    if origin in (types.UnionType, typing.Union):
        parts = [part for part in arguments if part not in (type(None), msgspec.UnsetType)]
        words = _keys(float if set(parts) == {int, float} else parts[0], key, whole)
        is_null = type(None) in arguments and list(words) == [key]
        return {name: f"{word} or null" if is_null else word for name, word in words.items()}
    if origin is typing.Literal:
        return {key: "text"}
    if origin is list:
        return _keys(arguments[0], f"{key}[]", whole)
    if hint is Losses:  # a record with a key for each reason, which has a table of its own
        return _keys(Loss, f"{key}.*", whole)
    if origin is not None:  # a mapping
        return _keys(arguments[1], f"{key}.*", whole)
    if hint in whole:
        return {key: "record"}
    if dataclasses.is_dataclass(hint) or (isinstance(hint, type) and issubclass(hint, msgspec.Struct)):
        return keys_of(typing.cast(type, hint), f"{key}.", whole)
    names: dict[Any, str] = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "value"}
    return {key: names[hint]}


def differences(told: Mapping[str, str], true: Mapping[str, str]) -> list[str]:
    """What a table leaves out, makes up, or has another type of."""
    return [
        f"{key}: {told.get(key, 'nothing')} in the text, {true.get(key, 'nothing')} in the code"
        for key in sorted({*told, *true})
        if told.get(key) != true.get(key)
    ]
