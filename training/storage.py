"""Room on a disk, and permissions."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from training.errors import StorageError


def room(folder: Path) -> str:
    """How much can still be written to a folder's disk, in words."""
    return f"{shutil.disk_usage(folder).free / 1e9:,.3f} GB free"


def check_room(folder: Path, num_bytes: int) -> None:
    """Raise `StorageError` if a folder's disk has no room for that much."""
    if shutil.disk_usage(folder).free < num_bytes:
        raise StorageError(f"{folder} has no room for {num_bytes / 1e9:,.3f} GB of weights ({room(folder)})")


def open_to_readers(folder: Path) -> None:
    """Weights are written for their owner alone; they get the permissions of any new file."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~mask)
