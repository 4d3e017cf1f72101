"""A simple model of a POSIX file system, which replays a recorded run and crashes the machine anywhere in it.

The content of a file is durable once the file was synced, a name once the folder that it is in was. Until then the
content may be missing, cut off or zeros from some place on, and each change of names may have been made or not, in any
combination; a rename changes two folders at once, and an exchange two names, as journals have it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.base.storage import Step


@dataclass(eq=False)
class File:
    """What a file holds, in memory and on the disk."""

    content: bytes = b""
    durable: bytes = b""


@dataclass(eq=False)
class Folder:
    """What a folder holds on the disk, and in memory."""

    durable: dict[str, Node] = field(default_factory=dict)
    names: dict[str, Node] = field(default_factory=dict)


Node = File | Folder
Change = list[tuple[Folder, str, Node | None]]
"""Names that change together: the folder, the name, and what has it then; None for nothing."""


class Model:
    """The file system below one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folder = _read(root)
        self._pending: list[Change] = []

    def apply(self, step: Step) -> None:
        """Do a step of a run, if it is one inside the folder."""
        path, to = Path(step.path), Path(step.to)
        if not path.is_relative_to(self._root):
            return
        if path == self._root:
            if step.operation == "sync":
                self._sync(self.folder)
            return
        parent, name = self._find(path.parent), path.name
        match step.operation:
            case "create":
                self._change([(parent, name, File())])
            case "write":
                file = parent.names[name]
                assert isinstance(file, File)
                file.content += bytes(step.data)
            case "sync":
                self._sync(parent.names[name])
            case "make" if name not in parent.names:
                self._change([(parent, name, Folder())])
            case "lock" if name not in parent.names:
                self._change([(parent, name, File())])
            case "remove" | "remove folder" if name in parent.names:
                self._change([(parent, name, None)])
            case "rename":
                self._change([(parent, name, None), (self._find(to.parent), to.name, parent.names[name])])
            case "link":
                self._change([(self._find(to.parent), to.name, parent.names[name])])
            case "exchange":
                other = self._find(to.parent)
                self._change([(parent, name, other.names[to.name]), (other, to.name, parent.names[name])])

    def _find(self, path: Path) -> Folder:
        node: Node = self.folder
        for part in path.relative_to(self._root).parts:
            assert isinstance(node, Folder)
            node = node.names[part]
        assert isinstance(node, Folder)
        return node

    def _change(self, change: Change) -> None:
        for folder, name, node in change:
            _bind(folder.names, name, node)
        self._pending.append(change)

    def _sync(self, node: Node) -> None:
        if isinstance(node, File):
            node.durable = node.content
            return
        for change in [change for change in self._pending if any(folder is node for folder, _, _ in change)]:
            self._pending.remove(change)
            for folder, name, new in change:
                _bind(folder.durable, name, new)

    def crash(self, draws: random.Random, place: Path) -> None:
        """Write what may be on the disk after a crash now into a folder, which must not be there."""
        kept = draws.choice([0.0, 0.5, 0.5, 1.0])
        names: dict[Folder, dict[str, Node]] = {}
        for change in self._pending:
            if draws.random() < kept:
                for folder, name, node in change:
                    _bind(names.setdefault(folder, dict(folder.durable)), name, node)
        _write(self.folder, names, place, lambda file: _torn(file, draws))


def _bind(names: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def _torn(file: File, draws: random.Random) -> bytes:
    """What a crash may leave of a file's content."""
    if file.content == file.durable:
        return file.durable
    at = draws.randrange(len(file.content) + 1)
    return draws.choice(
        [file.durable, file.content, file.content[:at], file.content[:at] + bytes(len(file.content) - at)]
    )


def _read(path: Path) -> Folder:
    """A folder as it is, all of it durable."""
    names: dict[str, Node] = {}
    for entry in path.iterdir():
        content = b"" if entry.is_dir() else entry.read_bytes()
        names[entry.name] = _read(entry) if entry.is_dir() else File(content, content)
    return Folder(names, dict(names))


def _write(folder: Folder, names: dict[Folder, dict[str, Node]], place: Path, content: Callable[[File], bytes]) -> None:
    place.mkdir()
    for name, node in names.get(folder, folder.durable).items():
        if isinstance(node, Folder):
            _write(node, names, place / name, content)
        else:
            (place / name).write_bytes(content(node))


def recorded(steps: list[Step]) -> Callable[[Step, Callable[[], Any]], Any]:
    """An interceptor that notes every step that was done, with a copy of its data."""

    def note(step: Step, act: Callable[[], Any]) -> Any:
        data = None if step.data is None else bytes(step.data)
        done = act()
        steps.append(Step(step.operation, step.path, step.to, data if data is None else data[:done]))
        return done

    return note
