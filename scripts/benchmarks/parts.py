"""What can be measured, and where and how large."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.inputs import CAPACITY
from benchmarks.measuring import Case, FailedError

SUBJECTS = {
    "plan": "planning",
    "job": "job",
    "tokenize": "tokenizing",
    "chats": "chats",
    "related": "related",
    "verify": "verifying",
    "collate": "collating",
    "startup": "startup",
    "growth": "growth",
    "memory": "memory",
}
"""The modules of `benchmarks.subjects`, by the names of what they measure."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where, how large and on what is measured."""

    tmpfs: Path
    disk: Path
    workers: int
    scale: float = 1.0
    """What all numbers of samples are multiplied with; 1 for figures, less to try that everything runs."""

    rounds: int | None = None
    """None for those of each part."""

    source: Path | None = None
    """JSON lines of instructions (task, instruction, input, output)."""

    tokenizer: Path | None = None
    """A tokenizer.json."""

    def samples(self, count: int) -> int:
        """A number of samples, at the scale."""
        return max(1000, round(count * self.scale))

    def real_data(self) -> tuple[Path, Path]:
        """The instructions and the tokenizer. Raises `FailedError` where they were not given."""
        if self.source is None or self.tokenizer is None:
            raise FailedError("it needs --source and --tokenizer")
        return self.source, self.tokenizer


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a subject: a function that gives cases by their names."""

    name: str
    measure: Callable[[Setting, int], dict[str, Case]]
    """Called with the setting and the number of rounds."""

    rounds: int
    minutes: float
    """About what it takes, as was guessed from smaller runs; the results tell what it took."""


def parts_of(subject: str) -> tuple[Part, ...]:
    """The parts of a subject, in the order in which they are measured."""
    parts: tuple[Part, ...] = importlib.import_module(f"benchmarks.subjects.{SUBJECTS[subject]}").PARTS
    return parts


@contextmanager
def folder_in(place: Path) -> Iterator[Path]:
    """A new folder for the time of a measurement."""
    place.mkdir(parents=True, exist_ok=True)
    folder = place / "measured"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def pack_command(source: Path | str, output: Path, *flags: object, capacity: int = CAPACITY) -> list[object]:
    """The command `pack`, with a cache of its own beside the output."""
    shared = ["--max-length", capacity, "--cache-dir", output.parent / "cache", *flags]
    return [sys.executable, "-m", "pipeline", "pack", source, "--output", output, *shared]


def removed(*paths: Path) -> None:
    """Remove folders that may be there."""
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
