"""What a worker process of a cluster does: it is told a stage once, and then tasks of it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import pickle
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base.dealing.stages import Outcome, Stage, TaskContext, found_or_done
from pipeline.base.engine import LocalEngine
from pipeline.base.staging import Record, Staging

_REPORTED_EVERY = 0.5  # seconds
_MOST_STAGES = 4
_LOGGERS = (logging.getLogger("pipeline"), logging.getLogger("strategies"))

Report = Callable[[int], None]
"""Is called with all units of a task done so far."""


@dataclass(frozen=True)
class Answer:
    """What a worker says of a task."""

    outcome: Outcome[Any] | None
    error: Exception | None
    """What the task raised."""

    files: list[tuple[str, Path, Record]]
    """The finished files of the dataset: name in it, path and record."""

    told: list[tuple[str, int, str]]
    """What the task logged: logger, level and words."""


class _Noting:
    """A mirror that keeps nothing, and notes what it is told of."""

    def __init__(self) -> None:
        self.files: list[tuple[str, Path, Record]] = []

    def keep(self, name: str, path: Path, record: Record) -> None:
        self.files.append((name, path, record))

    def record_of(self, name: str) -> Record | None:
        return None


class _Listening(logging.Handler):
    """Keeps what is logged while it listens, which nobody reads here."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.told: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append((record.name, record.levelno, record.getMessage()))

    def __enter__(self) -> _Listening:
        for logger in _LOGGERS:
            logger.setLevel(logging.INFO)
            logger.addHandler(self)
        return self

    def __exit__(self, *exception: object) -> None:
        for logger in _LOGGERS:
            logger.removeHandler(self)


_stages: OrderedDict[str, Stage[Any, Any]] = OrderedDict()


def stage_of(key: str, fetch: Callable[[], bytes]) -> Stage[Any, Any]:
    """A stage, unpickled once in this process. key: what tells it from others."""
    if key not in _stages:
        _stages[key] = pickle.loads(fetch())
        if len(_stages) > _MOST_STAGES:
            _stages.popitem(last=False)
    return _stages[key]


def perform(key: str, fetch: Callable[[], bytes], task: bytes, folder: Path, num_threads: int, report: Report) -> bytes:
    """Do a pickled task unless it is done; returns its `Answer`, pickled. folder: of staging."""
    noting, done, told = _Noting(), 0, time.monotonic()

    def monitor(units: int) -> None:
        nonlocal done, told
        done += units
        if time.monotonic() - told > _REPORTED_EVERY:
            told = time.monotonic()
            report(done)

    outcome, error = None, None
    with _Listening() as listening:
        try:
            stage = stage_of(key, fetch)
            with LocalEngine(num_threads) as engine:
                context = TaskContext(engine, Staging(folder, noting), monitor)
                outcome = found_or_done(stage, pickle.loads(task), context)
        except Exception as raised:
            error = _portable(raised)
    return pickle.dumps(Answer(outcome, error, noting.files, listening.told))


def _portable(error: Exception) -> Exception:
    """An error that can be pickled, with where it was raised."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception_only(error)))
    return error


def code() -> tuple[str, str]:
    """The version of this package, and the hash of its code."""
    digest = hashlib.sha256()
    for package in ("pipeline", "strategies"):
        spec = importlib.util.find_spec(package)
        for folder in spec.submodule_search_locations or () if spec else ():
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    try:
        version = importlib.metadata.version("tightpack")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed)"
    return version, digest.hexdigest()[:12]


def sees(path: Path, content: str) -> bool:
    """Whether a small file is there as it was written elsewhere."""
    try:
        return path.read_text() == content
    except OSError:
        return False
