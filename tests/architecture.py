"""What the structure of the code has to be, read from its imports and definitions."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOMS = (
    "base",
    "format",
    "publishing",
    "reading",
    "tokenizing",
    "embedding",
    "packing",
    "verifying",
    "looking",
    "command",
)
"""The rooms of `pipeline`, from the ground floor up: an import goes downwards only."""

CLOSED = {"verifying": {"embedding", "packing"}}
"""Rooms below that a room keeps away from: the verifier's account is its own."""

PACKAGES = ("strategies", "pipeline", "training")
LIGHT = "strategies.arrays"
"""What of `strategies` the two lowest rooms may know: names of types."""

MOST_ROOMS, MOST_MODULES, MOST_LINES, MOST_FUNCTION_LINES = 10, 12, 350, 60


_parsed = functools.cache(ast.parse)  # every rule reads every file


@dataclass(frozen=True)
class Import:
    """One name imported by a module."""

    importer: str
    module: str
    """The module that is imported, or that the name comes from."""

    name: str | None
    """The name taken from it; None where the module itself is imported."""

    line: int


@dataclass(frozen=True)
class Tree:
    """The Python files below a folder."""

    root: Path

    def files(self) -> dict[str, Path]:
        """Every module of ours by its dotted name."""
        found = {}
        for top in (*PACKAGES, "scripts", "tests"):
            for path in sorted((self.root / top).rglob("*.py")):
                parts = path.relative_to(self.root).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        return found

    def where(self, module: str, line: int) -> str:
        """The words that name a line."""
        return f"{self.files()[module].relative_to(self.root)}:{line}"

    def imports(self) -> Iterator[Import]:
        """Every import of a module of ours, also those inside functions and for types alone."""
        files = self.files()
        for importer, path in files.items():
            for node in ast.walk(_parsed(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    for alias in node.names:
                        if alias.name.split(".")[0] in (*PACKAGES, "scripts", "tests"):
                            yield Import(importer, alias.name, None, node.lineno)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    if node.module.split(".")[0] not in (*PACKAGES, "scripts", "tests"):
                        continue
                    for alias in node.names:
                        whole = f"{node.module}.{alias.name}"
                        if whole in files:
                            yield Import(importer, whole, None, node.lineno)
                        else:
                            yield Import(importer, node.module, alias.name, node.lineno)


def _room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "pipeline" and len(parts) > 1 and parts[1] in ROOMS else None


def _may_import(importer: str, module: str) -> bool:
    ours, theirs = importer.split(".", maxsplit=1)[0], module.split(".", maxsplit=1)[0]
    if ours == "tests":
        return True
    if theirs in ("tests", "scripts"):
        return False
    if ours == "scripts" or importer in ("pipeline", "pipeline.__main__"):
        return True
    if ours == "strategies":
        return theirs == "strategies"
    if ours == "training":
        if theirs == "pipeline":
            is_api = module == "pipeline" and importer.startswith("training.compare")
            return is_api or _room(module) in ("base", "format")
        return theirs == "training"
    room, other = _room(importer), _room(module)
    assert room is not None, f"{importer} stands in no room"
    if theirs == "strategies":
        return room not in ("base", "format") or module == LIGHT
    if theirs != "pipeline" or other is None:
        return False
    return ROOMS.index(other) <= ROOMS.index(room) and other not in CLOSED.get(room, set())


def arrows(tree: Tree) -> list[str]:
    """Imports that go upwards, or where they must not."""
    return [
        f"{tree.where(each.importer, each.line)}: {each.importer} may not import {each.module}"
        for each in tree.imports()
        if not _may_import(each.importer, each.module)
    ]


def private_names(tree: Tree) -> list[str]:
    """Names with an underscore that are imported, or read from an imported module of ours."""
    wrong = []
    files = tree.files()
    for each in tree.imports():
        last = each.name if each.name is not None else each.module.rpartition(".")[2]
        if last.startswith("_") and not last.startswith("__"):
            wrong.append(f"{tree.where(each.importer, each.line)}: {each.module}.{each.name or ''} is private")
    for module, path in files.items():
        syntax = _parsed(path.read_text(encoding="utf-8"))
        names = _modules_by_name(syntax, set(files))
        for node in ast.walk(syntax):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in names
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
            ):
                wrong.append(f"{tree.where(module, node.lineno)}: {names[node.value.id]}.{node.attr} is private")
    return wrong


def _modules_by_name(syntax: ast.Module, known: set[str]) -> dict[str, str]:
    """The modules of ours that a file has under a name of its own."""
    names: dict[str, str] = {}
    for node in ast.walk(syntax):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname and alias.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if f"{node.module}.{alias.name}" in known:
                    names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def circles(tree: Tree) -> list[str]:
    """Modules that import each other, around any corners."""
    lazy = {"pipeline", "strategies", "training"}  # their __init__ imports a name when it is asked for
    graph: dict[str, set[str]] = {}
    for each in tree.imports():
        if each.importer not in lazy and each.importer != each.module:
            graph.setdefault(each.importer, set()).add(each.module)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" imports ".join(reversed(error.args[1]))]
    return []


def sizes(tree: Tree) -> list[str]:
    """Folders, modules and functions that are too large."""
    wrong = []
    rooms = [path for path in (tree.root / "pipeline").iterdir() if (path / "__init__.py").is_file()]
    if len(rooms) > MOST_ROOMS:
        wrong.append(f"pipeline has {len(rooms)} rooms")
    folders: dict[Path, int] = {}
    for path in tree.files().values():
        folders[path.parent] = folders.get(path.parent, 0) + 1
        text, name = path.read_text(encoding="utf-8"), path.relative_to(tree.root)
        if text.count("\n") > MOST_LINES:
            wrong.append(f"{name} has {text.count(chr(10))} lines")
        for node in ast.walk(_parsed(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _is_kernel(node):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MOST_FUNCTION_LINES:
                    wrong.append(f"{name}:{node.lineno}: {node.name} has {length} lines")
    wrong += [f"{folder.relative_to(tree.root)} has {n} modules" for folder, n in folders.items() if n > MOST_MODULES]
    return wrong


def _is_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Compiled functions may be longer: a call in a hot loop may cost more than what it does, and numba compiles every
    helper anew for each combination of types."""
    return any(isinstance(each, ast.Name) and each.id == "kernel" for each in node.decorator_list)
