"""Input files, wherever they lie: fetched to a local path, hashed by content, hashes remembered."""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import xxhash

from pipeline.errors import BusyError, DataError, PipelineError

log = logging.getLogger(__name__)

# Said by a file system of a file that may be replaced under its name; without one of them, nothing is remembered.
_VERSION_MARKS = ("mtime", "ETag", "LastModified", "Last-Modified", "Content-MD5", "created")
_SETTLED_SECONDS = 2.0  # a file younger than this may change again within the same timestamp
_HASH_BYTES = 1 << 26

Info = Mapping[str, Any]
"""What a file system says of a file."""


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One data file of an input."""

    system: fsspec.AbstractFileSystem
    path: str
    format: str
    """arrow, parquet or json."""

    @property
    def is_local(self) -> bool:
        """Whether it can be mapped where it lies."""
        return "file" in _protocols(self.system)

    @property
    def name(self) -> str:
        """Without its folders."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def shown(self) -> str:
        """How messages name it."""
        return self.path if self.is_local else f"{_protocols(self.system)[0]}://{self.path}"

    def size(self) -> int:
        """Bytes."""
        return int(self.system.size(self.path) or 0)


def _protocols(system: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


class FileCache:
    """The folder under `--cache-dir`: remembered content hashes, and copies of remote files while a run needs them."""

    def __init__(self, folder: Path) -> None:
        self._hashes = folder / "hashes"
        self._downloads = folder / "downloads"
        self._fetched: list[Path] = []
        self._seen: dict[InputFile, Info] = {}

    def content_hash(self, file: InputFile) -> str:
        """xxh3_128 of the file's bytes, in hex; remembered by path, size and time stamps.

        A cache that cannot be read or written only costs time.
        """
        info = file.system.info(file.path)
        self._seen[file] = info
        key = self._key(file, info)
        entry = self._hashes / key
        if key:
            try:
                return str(json.loads(entry.read_text())["xxh3_128"])
            except (OSError, ValueError, KeyError):
                pass
        seen_at = time.time()
        digest = hash_file(self.local_path(file))
        settled = max(float(info.get("mtime", 0)), float(info.get("created", 0))) if file.is_local else 0.0
        if key and seen_at - settled > _SETTLED_SECONDS:
            try:
                self._hashes.mkdir(parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile("w", dir=self._hashes, delete=False) as new:
                    json.dump({"file": file.shown, "xxh3_128": digest}, new)
                os.replace(new.name, entry)
            except OSError as error:
                log.debug("content hash of %s is not remembered: %s", file.shown, error)
        return digest

    def local_path(self, file: InputFile) -> str:
        """A path that can be opened and memory-mapped; remote files are fetched once."""
        if file.is_local:
            return file.path
        info = file.system.info(file.path)
        name = hashlib.sha256(f"{file.shown} {sorted(map(str, info.items()))}".encode()).hexdigest()[:32]
        copy = self._downloads / name
        if not copy.exists():
            self._downloads.mkdir(parents=True, exist_ok=True)
            log.info("fetching %s (%.1f MB) into %s", file.shown, (info.get("size") or 0) / 1e6, self._downloads)
            part = self._downloads / f"{name}.{os.getpid()}.part"
            try:
                with reaching(file.shown, file.system):
                    file.system.get_file(file.path, str(part))
                os.replace(part, copy)
            finally:
                part.unlink(missing_ok=True)
        if copy not in self._fetched:
            self._fetched.append(copy)
        return str(copy)

    def require_unchanged(self) -> None:
        """Raise `DataError` if a local file was written to or replaced since it was hashed.

        Remote files are packed from a copy.
        """
        for file, info in self._seen.items():
            if file.is_local and file.system.info(file.path) != info:
                raise DataError(f"{file.shown}: changed while it was being packed; run again once it is complete")

    def forget_downloads(self) -> None:
        """Remove the copies that this run made or used."""
        for copy in self._fetched:
            copy.unlink(missing_ok=True)
        self._fetched.clear()

    @staticmethod
    def _key(file: InputFile, info: Info) -> str:
        if not any(mark in info for mark in _VERSION_MARKS):
            return ""
        path = os.path.realpath(file.path) if file.is_local else file.shown
        return hashlib.sha256(f"{path} {sorted(map(str, info.items()))}".encode()).hexdigest()[:32]


@contextmanager
def reaching(name: str, system: fsspec.AbstractFileSystem) -> Iterator[None]:
    """Turn whatever a remote file system's library raises into one message; local faults pass as they are.

    Raises `DataError` for what is missing or forbidden, `BusyError` for what may pass.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        if "file" in _protocols(system):
            raise
        told = f"input {name}: {' '.join(str(error).split()) or type(error).__name__}"
        final = isinstance(error, FileNotFoundError | PermissionError) or "Credentials" in type(error).__name__
        raise (DataError if final else BusyError)(told) from None


def hash_file(path: str) -> str:
    """xxh3_128 of a local file's bytes, in hex."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view, memoryview(view) as data:
                for start in range(0, size, _HASH_BYTES):
                    digest.update(data[start : start + _HASH_BYTES])
    return digest.hexdigest()


def default_cache_dir() -> Path:
    """Under `$XDG_CACHE_HOME`, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "tightpack"


def free_bytes(folder: Path) -> int:
    """Free space where `folder` is, or will be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
