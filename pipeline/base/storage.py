"""Files on a disk, hashed while they are written and there under their name only when they are whole."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What is known of a written file."""

    bytes: int
    xxh3_128: str


class HashingFile:
    """A binary file that is hashed while it is written, and durable under its name after `finish`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._file = open(self._part, "wb")  # noqa: SIM115 - open until finish or discard
        self._hash = xxhash.xxh3_128()
        self._bytes = 0
        self.closed = False

    def write(self, data: bytes | pa.Buffer) -> int:
        """Append bytes."""
        view = memoryview(data)
        self._hash.update(view)
        self._bytes += view.nbytes
        return self._file.write(view)

    def flush(self) -> None:
        """Do nothing: nothing is promised before `finish`."""

    def close(self) -> None:
        """Note that Arrow, which believes that it owns the file, is done with it; see `finish`."""
        self.closed = True

    def finish(self) -> FileFacts:
        """Give the file its name, durably."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._part, self._path)
        return FileFacts(bytes=self._bytes, xxh3_128=self._hash.hexdigest())

    def discard(self) -> None:
        """Leave nothing; does nothing after `finish`."""
        try:
            self._file.close()
        except OSError:
            pass  # what is still buffered has no place either
        finally:
            self._part.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> FileFacts:
    """Write a small file durably, as a shard is written. Raises `OSError`; leaves no partial file."""
    file = HashingFile(path)
    try:
        file.write(content)
        return file.finish()
    finally:
        file.discard()


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk where a folder is, or will be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def free_text(folder: Path) -> str:
    """The free space on a folder's disk, for a message."""
    return f"{free_bytes(folder) / 1e9:,.3f} GB free"


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
