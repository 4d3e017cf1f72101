"""What a stopped run goes on from: one file that appears complete or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from pipeline.base.errors import ConfigError, StorageError
from pipeline.base.storage import free_text, sync_folder
from pipeline.base.words import first_line

NAME = "checkpoint.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Replace a folder's checkpoint. Raises `StorageError`; the one before stays then."""
    building = folder / f".{NAME}"
    try:
        with open(building, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # what torch makes of any fault while it writes
        building.unlink()
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise StorageError(f"{folder / NAME} cannot be written ({free_text(folder)}): {first_line(error)}") from error
    building.replace(folder / NAME)
    sync_folder(folder)


def load(folder: Path) -> dict[str, Any] | None:
    """A folder's checkpoint, on the CPU; None if there is none. It is mapped: ranks share its memory.

    Raises `ConfigError` if it cannot be read.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}); remove it to begin again") from error
    return state
