"""Files that are hashed while they are written, and on disk under their name only when they are whole."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import xxhash


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """A written file."""

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
        """Append."""
        view = memoryview(data)
        self._hash.update(view)
        self._bytes += view.nbytes
        return self._file.write(view)

    def flush(self) -> None:
        """Nothing is promised before `finish`."""

    def close(self) -> None:
        """Called by Arrow, which believes that it owns the file; see `finish`."""
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
    """Write a small file as a shard is written."""
    file = HashingFile(path)
    try:
        file.write(content)
        return file.finish()
    finally:
        file.discard()
