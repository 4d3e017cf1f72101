"""What a stopped run goes on from: one file that appears complete or not at all."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from pipeline.base import storage
from pipeline.base.errors import ConfigError, StorageError
from pipeline.base.storage import free_text
from pipeline.base.words import first_line

NAME = "checkpoint.pt"

HOLDS = {"step", "model", "optimizer", "scheduler"}
"""What every checkpoint has."""


def save(folder: Path, state: dict[str, Any]) -> None:
    """Replace a folder's checkpoint. Raises `StorageError`; the one before stays then."""
    building = folder / f".{NAME}"
    try:
        with storage.create(building) as file:
            torch.save(state, file)
            storage.sync(file)
        storage.rename(building, folder / NAME)
        storage.sync_folder(folder)
    except (OSError, RuntimeError) as error:  # torch makes the latter of any fault while it writes
        with suppress(OSError):
            storage.remove(building)
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, KeyboardInterrupt):
            raise cause from None
        why = cause.strerror if isinstance(cause, OSError) and cause.strerror else first_line(error)
        raise StorageError(f"{folder / NAME} cannot be written ({free_text(folder)}): {why}") from error


def load(folder: Path) -> dict[str, Any] | None:
    """A folder's checkpoint, on the CPU; None if there is none. It is mapped: ranks share its memory.

    Raises `ConfigError` if it cannot be read, or is none.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}); remove it to begin again") from error
    if not isinstance(state, dict) or not state.keys() >= HOLDS:
        raise ConfigError(f"{path} is no checkpoint of a run; remove it to begin again")
    return state
