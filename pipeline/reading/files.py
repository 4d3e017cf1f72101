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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fsspec
import xxhash

from pipeline.base.errors import BusyError, DataError, PipelineError

log = logging.getLogger(__name__)

# What a file system says of a remote file's version, the most telling first; without any, nothing is remembered.
_VERSION_MARKS = ("ETag", "Content-MD5", "LastModified", "Last-Modified", "mtime", "created")
_SETTLED_SECONDS = 2.0  # a file younger than this may change again within the same timestamp
_HASH_BYTES = 1 << 26


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

    def version(self) -> str:
        """Changes when the file is written to or replaced; empty where the file system does not tell."""
        with reaching(self.shown, self.system):
            info = self.system.info(self.path)
        if self.is_local:
            return str(sorted(map(str, info.items())))
        mark = next((mark for mark in _VERSION_MARKS if mark in info), None)
        return f"{mark}={info[mark]}" if mark else ""

    def size(self) -> int:
        """Bytes."""
        with reaching(self.shown, self.system):
            return int(self.system.size(self.path) or 0)


def _protocols(system: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


class FileCache:
    """Remembers content hashes under `--cache-dir`, and holds copies of remote files there until it is left."""

    def __init__(self, folder: Path) -> None:
        self._hashes = folder / "hashes"
        self._downloads = folder / "downloads"
        self._seen: dict[InputFile, str] = {}
        self._copies: dict[InputFile, str] = {}

    def __enter__(self) -> FileCache:
        return self

    def __exit__(self, *exception: object) -> None:
        for copy in self._copies.values():
            Path(copy).unlink(missing_ok=True)

    def content_hash(self, file: InputFile) -> str:
        """xxh3_128 of the file's bytes, in hex; remembered by path, size and time stamps.

        A cache that cannot be read or written only costs time.
        """
        version = self._seen.setdefault(file, file.version())
        if not version:
            return hash_file(self.local_path(file))
        path = os.path.realpath(file.path) if file.is_local else file.shown
        key = hashlib.sha256(f"{path} {version}".encode()).hexdigest()[:32]
        entry = self._hashes / key
        try:
            return str(json.loads(entry.read_text())["xxh3_128"])
        except (OSError, ValueError, KeyError):
            pass
        seen_at = time.time()
        digest = hash_file(self.local_path(file))
        settled = os.stat(file.path).st_ctime if file.is_local else 0.0
        if seen_at - settled > _SETTLED_SECONDS:
            try:
                self._hashes.mkdir(parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile("w", dir=self._hashes, delete=False) as new:
                    json.dump({"file": file.shown, "xxh3_128": digest}, new)
                os.replace(new.name, entry)
            except OSError as error:
                log.debug("content hash of %s is not remembered: %s", file.shown, error)
        return digest

    def local_path(self, file: InputFile) -> str:
        """A path that can be opened and memory-mapped; remote files are fetched once.

        The copy is this run's own, so that runs beside it cannot take it away. Raises `DataError` if what is
        fetched is not the version that was looked at.
        """
        if file.is_local:
            return file.path
        if file not in self._copies:
            self._seen.setdefault(file, file.version())
            self._downloads.mkdir(parents=True, exist_ok=True)
            log.info("fetching %s (%.1f MB) into %s", file.shown, file.size() / 1e6, self._downloads)
            descriptor, copy = tempfile.mkstemp(dir=self._downloads)
            os.close(descriptor)
            self._copies[file] = copy
            with reaching(file.shown, file.system):
                file.system.get_file(file.path, copy)
                file.system.invalidate_cache()
                self._require_same(file)
        return self._copies[file]

    def require_unchanged(self) -> None:
        """Raise `DataError` if a local file was written to or replaced since it was hashed.

        Remote files are packed from a copy.
        """
        for file in self._seen:
            if file.is_local:
                self._require_same(file)

    def _require_same(self, file: InputFile) -> None:
        if file.version() != self._seen[file]:
            raise DataError(f"{file.shown}: changed while it was being packed; run again once it is complete")


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
