"""A training run's output directory: one run's own, never another's."""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from training import checkpoint
from training.errors import BusyError, ConfigError, StorageError

log = logging.getLogger("training")

LOG = "log.jsonl"
MODEL = "model"
RECORD = "run.json"
RESULT = "result.json"
LOCK = ".lock"

_BY_CONTENT = {"model": "its model has another config.json or other weights", "shards": "its shards are others"}
"""What is named in a run's record by a hash, and what a difference means."""


def check_output(output: Path, identity: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for an output that holds something else than this run, or the beginnings of another."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file")
    record = output / RECORD
    if not record.is_file():
        if output.is_dir() and any(each.name != LOCK for each in output.iterdir()):
            raise ConfigError(f"--output {output} holds files that are not of a training run: choose another directory")
    elif (output / checkpoint.NAME).is_file() or (output / RESULT).is_file():
        _refuse_other(output, identity, read_json(record))


def claim(output: Path, identity: Mapping[str, Any]) -> IO[str]:
    """Make a directory this run's own; returns the lock, which is held until it is closed.

    Raises `BusyError` where another run writes, and as `check_output`.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = open(output / LOCK, "w", encoding="utf-8")  # noqa: SIM115 - held by the caller
    except OSError as error:
        raise StorageError(f"--output {output} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        check_output(output, identity)  # again: another run may have ended meanwhile
    except BlockingIOError:
        lock.close()
        raise BusyError(f"another run is writing {output}: wait for it, or choose another --output") from None
    building = output / ".run.json"
    building.write_text(json.dumps(identity) + "\n", encoding="utf-8")
    building.replace(output / RECORD)
    return lock


def finish(output: Path, result: Mapping[str, Any]) -> None:
    """Say that a run is done: its model is written, and there is nothing to go on from any more."""
    (output / RESULT).write_text(json.dumps({**result, "files": _sizes(output / MODEL)}) + "\n", encoding="utf-8")
    (output / checkpoint.NAME).unlink(missing_ok=True)


def finished(output: Path) -> dict[str, Any] | None:
    """What a run that is done told, if its model is still there.

    Raises `ConfigError` where that was changed, by names and sizes: whoever did that may want to keep it.
    """
    if not (output / RESULT).is_file():
        return None
    if not (output / MODEL).is_dir():
        log.warning("%s is gone: it is trained again", output / MODEL)
        return None
    result = read_json(output / RESULT)
    if not result.pop("files", {}).items() <= _sizes(output / MODEL).items():
        raise ConfigError(f"{output / MODEL} is not as it was written; remove it to train it again")
    return result


def _sizes(folder: Path) -> dict[str, int]:
    return {each.name: each.stat().st_size for each in folder.iterdir()} if folder.is_dir() else {}


def read_json(path: Path) -> dict[str, Any]:
    """What a run wrote of itself. Raises `ConfigError` where that is damaged."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged; remove its directory to begin again") from error
    return value


def _refuse_other(output: Path, identity: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    differ = [name for name in identity if identity[name] != known.get(name)]
    if differ:
        name = differ[0]
        was, wanted = ("none" if each.get(name) is None else repr(each[name]) for each in (known, identity))
        what = _BY_CONTENT.get(name, f"its {name.replace('_', '-')} is {was}, not {wanted}")
        raise ConfigError(f"{output} holds another run: {what}; choose another --output, or remove it")
