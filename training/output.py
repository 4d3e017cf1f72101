"""A training run's output directory: one run's own, never another's."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from training import checkpoint
from training.errors import BusyError, ConfigError

LOG = "log.jsonl"
RECORD = "run.json"
RESULT = "result.json"
LOCK = ".lock"


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
    output.mkdir(parents=True, exist_ok=True)
    lock = open(output / LOCK, "w", encoding="utf-8")  # noqa: SIM115 - held by the caller
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        check_output(output, identity)  # again: another run may have ended meanwhile
    except BlockingIOError:
        lock.close()
        raise BusyError(f"another run is writing {output}") from None
    building = output / ".run.json"
    building.write_text(json.dumps(identity) + "\n", encoding="utf-8")
    building.replace(output / RECORD)
    return lock


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
        raise ConfigError(
            f"{output} holds another run: its {name.replace('_', '-')} is {known.get(name)!r}, not {identity[name]!r};"
            " choose another --output, or remove it"
        )


def open_to_readers(folder: Path) -> None:
    """Weights are written for their owner alone; they get the permissions of any new file."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~mask)
